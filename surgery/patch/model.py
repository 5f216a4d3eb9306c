"""What a patch is: terms to add, the base they were made for, and what adding them gives."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoint.digest import Digest, Fingerprint, TensorHash
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.reader import CHUNK_BYTES, read_blocks
from surgery.delta.algebra import fits, is_replacing, shape_of
from surgery.delta.delta import Delta
from surgery.delta.exact import on_grid
from surgery.delta.forms import Form, LowRank, Replace
from surgery.errors import PatchError, nearest, raise_all
from surgery.patch.lora_layout import carriers_for
from surgery.patch.rounding import add_once, changed_elements, round_once
from surgery.patch.terms import Term, conflicts, content_digest, edited, forms_of, half_change, term_faults
from surgery.progress import track
from surgery.record import JSON
from surgery.store.libraries import library_versions
from surgery.threads import one_thread_each

SUPPORTED: Final = (torch.float16, torch.bfloat16, torch.float32)


class Edit(NamedTuple):
    """A block of rows of a weight before and after, as stored."""

    before: Tensor
    after: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a patch at strength 1 does to one tensor of its base.

    Attributes:
        changed: Number of elements whose bits change.
        largest: The largest absolute change of an element.
        norm: Frobenius norm of the change.
        half: The ``value16`` digest of what the patch makes of the base's half-precision copy: rounding the
            weight before or after the change is added is not the same. None where the base is in half
            precision itself, where that cannot hold the outcome, and in older patches.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    before: Digest
    after: Digest
    changed: int
    largest: float
    norm: float
    half: str | None = None

    def is_outcome(self, value16: str, stored: torch.dtype) -> bool:
        """Whether a tensor stored as ``stored`` with this digest has the outcome's values, in half precision.

        In half precision there are two: the change was added before the weight was rounded, or after.
        """
        return value16 == self.after.value16 or (stored == torch.float16 and value16 == self.half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Terms, the base they belong to, and the outcome; see `make_patch`.

    Attributes:
        terms: In canonical order, so that equal edits give equal files.
        architecture: ModelSpec's word for the base.
        roots: Fingerprints of the base's components.
        changes: Per touched tensor, sorted by name.
        carriers: Shapes of untouched weights that some loaders need modules of zeros for; see
            `surgery.patch.lora_layout`.
        provenance: Recipe, seed, library versions; never a clock, a host or a duration.
    """

    terms: tuple[Term, ...]
    architecture: str
    roots: Mapping[str, Digest]
    changes: Mapping[str, Change]
    carriers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    provenance: Mapping[str, JSON] = field(default_factory=dict)
    file_digest: str = field(default="", init=False, compare=False)
    """Of the file it was read from, which may be written otherwise than we would; no copy has it."""

    @property
    def base(self) -> Fingerprint:
        """The fingerprint of the base: its touched tensors and its components."""
        return Fingerprint(
            tensors={name: change.before for name, change in self.changes.items()}, roots=self.roots
        )

    def edited(self, name: str, weight: Tensor, strength: float = 1.0, base: Tensor | None = None) -> Tensor:
        """A weight with this patch in it, as stored; see `surgery.patch.terms.edited`.

        Args:
            name: Canonical name.
            weight: The weight to change.
            strength: 1 as made.
            base: The base's own weight, where ``weight`` has other patches in it already.

        Raises:
            PatchError: when the change, or a changed weight, is too large for its precision.
        """
        return edited(forms_of(self.terms, name, strength), name, weight, base)

    def blocks(self, checkpoint: Checkpoint, name: str, strength: float = 1.0) -> Iterator[Edit]:
        """One weight of the base before and after, block of rows by block of rows.

        Raises:
            PatchError: when the change, or a changed weight, is too large for its precision.
        """
        return edit_blocks(self.terms, checkpoint, name, strength)

    def added(self, name: str, weight: Tensor) -> tuple[Float[Tensor, "*shape"], int]:
        """The half-precision change that, added to a weight, gives the patched one, and where it does not.

        Changes that add up are such a change by definition. New and rescaled values need not be within reach
        of a half-precision change: then the nearest one comes back.

        Returns:
            The change (fp16), and the number of elements that adding it would leave at another value.
        """
        forms = forms_of(self.terms, name)
        change = half_change(forms, name, weight)
        if change is not None and not any(is_replacing(form) for form, _ in forms):
            return change, 0
        after = self.edited(name, weight)
        change = round_once(after.double() - weight.double(), torch.float16)
        return change, int((add_once(weight, change) != after).sum())


def make_patch(
    terms: Sequence[Term], checkpoint: Checkpoint, provenance: Mapping[str, JSON] | None = None
) -> Patch:
    """A patch of ``checkpoint``, with the digests before and after.

    Args:
        terms: What to add; their order does not matter.
        checkpoint: The base. All of it is read once, for its fingerprint.
        provenance: What to remember about the edit; library versions are added under ``versions``, and the
            base's own title and licence, where it states them, under ``base_notes``.

    Raises:
        PatchError: listing every tensor that the base lacks, or that the terms do not fit.
    """
    names = sorted({name for term in terms for name in term.delta.terms})
    raise_all(PatchError, [*_misfits(terms, checkpoint), *term_faults(terms)])
    stored = [replace(term, delta=storable(term.delta)) for term in terms]
    raise_all(PatchError, list(conflicts(stored)))
    fingerprint = checkpoint.fingerprint()
    ordered = tuple(sorted(stored, key=content_digest))
    with one_thread_each() as pool:
        found = pool.map(lambda name: change_at(ordered, checkpoint, name, fingerprint.tensors[name]), names)
        changes = dict(zip(names, track(found, "patch", total=len(names), unit="tensor"), strict=True))
    return Patch(
        terms=ordered,
        architecture=checkpoint.architecture,
        roots=fingerprint.roots,
        changes=changes,
        carriers=carriers_for(names, checkpoint.architecture, checkpoint.shapes),
        provenance={"versions": library_versions(), **_notes(checkpoint), **(provenance or {})},
    )


def carried(patch: Patch, origins: Sequence[Patch]) -> Patch:
    """The patch with the carriers that its own tensors need; their shapes are those of its origins."""
    shapes = {name: change.shape for origin in origins for name, change in origin.changes.items()}
    for origin in origins:
        shapes |= origin.carriers
    return replace(patch, carriers=carriers_for(patch.changes, patch.architecture, shapes))


def _notes(checkpoint: Checkpoint) -> dict[str, JSON]:
    notes: dict[str, JSON] = {**checkpoint.notes}
    return {"base_notes": notes} if notes else {}


def storable(delta: Delta) -> Delta:
    """A delta with its factors on a grid where their product is exact in any order of summation."""
    terms: dict[str, Form] = {}
    for name, form in delta.terms.items():
        terms[name] = LowRank(*on_grid(form.left, form.right)) if isinstance(form, LowRank) else form
    return Delta(terms)


def edit_blocks(
    terms: Sequence[Term],
    checkpoint: Checkpoint,
    name: str,
    strength: float = 1.0,
    stored: torch.dtype | None = None,
) -> Iterator[Edit]:
    """What terms make of one weight of the base, block of rows by block of rows; perhaps of a copy's."""
    # small blocks: their copies in float64 stay in the cache
    for start, weight in read_blocks(checkpoint.entry(name), CHUNK_BYTES):
        before = weight if stored is None else weight.to(stored)
        rows = (start, start + len(before)) if before.ndim else None
        yield Edit(before, edited(forms_of(terms, name, strength, rows), name, before))


def change_at(terms: Sequence[Term], checkpoint: Checkpoint, name: str, before: Digest) -> Change:
    """What terms do to one tensor of the base at strength 1."""
    entry = checkpoint.entry(name)
    hashes = TensorHash(name, entry.dtype, entry.shape)
    changed, largest, squares = 0, 0.0, 0.0
    for edit in edit_blocks(terms, checkpoint, name):
        hashes.add(edit.after)
        changed += changed_elements(*edit)
        difference = (edit.after.double() - edit.before.double()).nan_to_num(nan=0.0)
        largest = max(largest, float(difference.abs().max())) if difference.numel() else largest
        squares += float(difference.square().sum())
    return Change(
        dtype=entry.dtype,
        shape=entry.shape,
        before=before,
        after=hashes.digest(),
        changed=changed,
        largest=largest,
        norm=math.sqrt(squares),
        half=None if entry.dtype == torch.float16 else _half(terms, checkpoint, name),
    )


def _half(terms: Sequence[Term], checkpoint: Checkpoint, name: str) -> str | None:
    """The digest of the outcome in the base's half-precision copy; None where that cannot hold it."""
    entry = checkpoint.entry(name)
    hashes = TensorHash(name, torch.float16, entry.shape)
    try:
        for edit in edit_blocks(terms, checkpoint, name, stored=torch.float16):
            hashes.add(edit.after)
    except PatchError:
        return None
    return hashes.digest().value16


def _misfits(terms: Sequence[Term], checkpoint: Checkpoint) -> Iterable[str]:
    """Tensors that the base lacks, or has in another shape or a type that cannot be patched."""
    for name in sorted({name for term in terms for name in term.delta.terms}):
        entry = checkpoint.tensors.get(name)
        if entry is None:
            guess = nearest(name, checkpoint.tensors)
            yield f"{checkpoint.path} has no tensor {name!r}, which the edit changes. Is it {guess!r}?"
            continue
        if entry.dtype not in SUPPORTED:
            yield f"tensor {name!r} is stored as {entry.dtype}; fp16, bf16 or fp32 was expected. Convert it."
        for term in terms:
            form = term.delta.terms.get(name)
            if form is not None and not fits(form, entry.shape):
                yield (
                    f"tensor {name!r} has shape {entry.shape}; the edit is of shape {shape_of(form)}. "
                    "Was it made for another base?"
                )
            elif isinstance(form, Replace) and form.new.dtype != entry.dtype:
                yield (
                    f"tensor {name!r} is stored as {entry.dtype}; its new values are {form.new.dtype}. "
                    "Cast them first."
                )
