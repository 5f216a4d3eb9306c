"""What a patch is: terms to add, the base they were made for, and what adding them gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoint.digest import Digest, Fingerprint, tensor_digest
from surgery.checkpoint.layout import Checkpoint
from surgery.errors import PatchError, nearest, raise_all
from surgery.patch.rounding import changed_elements
from surgery.patch.terms import Term, content_digest, fits, half_delta, patched, term_faults
from surgery.record import JSON
from surgery.store.libraries import library_versions

SUPPORTED: Final = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a patch at strength 1 does to one tensor of its base.

    Attributes:
        changed: Number of elements whose bits change.
        largest: The largest absolute change of an element, before it is added.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    before: Digest
    after: Digest
    changed: int
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Terms, the base they belong to, and the outcome; see `make_patch`.

    Attributes:
        terms: In canonical order, so that equal edits give equal files.
        architecture: ModelSpec's word for the base.
        roots: Fingerprints of the base's components.
        changes: Per touched tensor, sorted by name.
        provenance: Recipe, seed, library versions; never a clock, a host or a duration.
    """

    terms: tuple[Term, ...]
    architecture: str
    roots: Mapping[str, Digest]
    changes: Mapping[str, Change]
    provenance: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def base(self) -> Fingerprint:
        """The fingerprint of the base: its touched tensors and its components."""
        return Fingerprint(
            tensors={name: change.before for name, change in self.changes.items()}, roots=self.roots
        )

    def half_delta(self, name: str, strength: float = 1.0) -> Float[Tensor, "*shape"]:
        """The change of a tensor in half precision: the float64 sum of the terms, rounded once.

        Every patched weight is its base plus this, rounded once more. Adding a half-precision change gives
        one and the same result in all loaders, whether they add in half or in single precision.

        Raises:
            PatchError: when the change is too large for half precision.
        """
        return half_delta(self.terms, name, self.changes[name].shape, strength)


def make_patch(
    terms: Sequence[Term], checkpoint: Checkpoint, provenance: Mapping[str, JSON] | None = None
) -> Patch:
    """A patch of ``checkpoint``, with the digests before and after.

    Args:
        terms: What to add; their order does not matter.
        checkpoint: The base. All of it is read once, for its fingerprint.
        provenance: What to remember about the edit; library versions are added under ``versions``.

    Raises:
        PatchError: listing every tensor that the base lacks, or that the terms do not fit.
    """
    names = sorted({name for term in terms for name in term.delta.terms})
    raise_all(PatchError, [*_misfits(terms, checkpoint), *term_faults(terms)])
    fingerprint = checkpoint.fingerprint()
    ordered = tuple(sorted(terms, key=content_digest))
    changes = {}
    for name in names:
        change = half_delta(ordered, name, checkpoint.entry(name).shape)
        changes[name] = _change(name, checkpoint.read(name), change, fingerprint.tensors[name])
    return Patch(
        terms=ordered,
        architecture=checkpoint.architecture,
        roots=fingerprint.roots,
        changes=changes,
        provenance={"versions": library_versions(), **(provenance or {})},
    )


def _change(name: str, weight: Tensor, change: Tensor, before: Digest) -> Change:
    edited = patched(name, weight, change)
    return Change(
        dtype=weight.dtype,
        shape=tuple(weight.shape),
        before=before,
        after=tensor_digest(name, edited),
        changed=changed_elements(weight, edited),
        largest=float(change.abs().max()) if change.numel() else 0.0,
    )


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
                    f"tensor {name!r} has shape {entry.shape}; the edit is of shape {form.shape}. "
                    "Was it made for another base?"
                )
