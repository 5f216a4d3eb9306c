"""The exact patch that leads from one checkpoint to another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Bool
from torch import Tensor

from surgery.checkpoint.beside import beside_weights
from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.checkpoint.reader import CHUNK_BYTES, read_rows, read_tensor
from surgery.checkpoint.spool import Spool
from surgery.delta.delta import Delta
from surgery.delta.exact import on_grid
from surgery.delta.forms import Form, LowRank, Replace
from surgery.delta.places import Kind, Places
from surgery.errors import PatchError, nearest, raise_all
from surgery.patch.encoding import encode, with_index
from surgery.patch.model import SUPPORTED, Patch, make_patch
from surgery.patch.rounding import bits_of
from surgery.patch.terms import Term, all_finite
from surgery.patch.terms import edited as edited_by
from surgery.progress import track
from surgery.threads import ahead

SOURCE = "diff"
_AHEAD: Final = 2  # tensors compared before their turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a diff found.

    Attributes:
        patch: Leads from the base to the edited checkpoint: exactly, or within ``errors``.
        errors: Per touched tensor the largest error of an element; 0 where the patch is exact.
        left_out: What differs beside the weights, in words; no patch carries it.
    """

    patch: Patch
    errors: Mapping[str, float]
    left_out: tuple[str, ...] = ()


def diff_checkpoints(
    base: Path, edited: Path, *, rank: int | None = None, keep_old: bool = False
) -> Difference:
    """A patch that makes ``edited`` of ``base``; both may be folders or single files.

    Each tensor that differs in its bits gets the new values where it differs, as rows, columns, elements or
    whole, whatever takes the fewest bytes. Applying does no arithmetic, so the outcome is exact.

    Args:
        base: The checkpoint to start from.
        edited: The checkpoint to arrive at. Its values must be among those of the base's types: an fp32
            base takes an fp16 checkpoint, not the other way round.
        rank: Approximate matrices and kernels by this rank instead, with the error stated.
        keep_old: Also store the old values, so that the patch can be taken out again without the base.

    Raises:
        PatchError: when the checkpoints are of different families, hold different tensors, differ in nothing,
            or the new values are not finite or do not fit the base's types; all faults at once.
    """
    if rank is not None and rank < 1:
        raise PatchError(f"the rank is {rank}; a whole number from 1 was expected, none to be exact.")
    before, after = open_checkpoint(base), open_checkpoint(edited)
    raise_all(PatchError, list(_mismatches(before, after)))
    forms: dict[str, Form] = {}
    errors: dict[str, float] = {}
    faults: list[str] = []
    spool = Spool()
    compared = ahead((_compared(before, after, name) for name in sorted(before.tensors)), _AHEAD)
    for name, differs, fault in track(compared, "diff", total=len(before.tensors), unit="tensor"):
        faults += fault
        if differs is not None and not faults:
            form, errors[name] = _form(before, after, name, differs, rank, keep_old=keep_old)
            forms[name] = _kept(spool, form)
    raise_all(PatchError, faults)
    left_out = tuple(str(one) for one in beside_weights(before, after) if one.keys)
    if not forms:
        but = f" but for {', '.join(left_out)}, which no patch carries" if left_out else ""
        raise PatchError(f"{edited} holds the same values as {base}{but}; there is nothing to write.")
    term = Term(delta=Delta(forms), source=SOURCE)
    patch = make_patch([term], before, {"method": SOURCE})
    return Difference(patch=patch, errors=errors, left_out=left_out)


def _mismatches(before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    if before.architecture != after.architecture:
        yield (
            f"{after.path} is a {after.architecture} and {before.path} a {before.architecture}; two "
            "checkpoints of one family were expected."
        )
        return
    for one, other in ((before, after), (after, before)):
        for name in sorted(one.tensors.keys() - other.tensors.keys()):
            guess = nearest(name, other.tensors)
            yield f"{other.path} has no tensor {name!r}, which {one.path} has (nearest: {guess!r})."
    for name in sorted(before.tensors.keys() & after.tensors.keys()):
        old, new = before.entry(name), after.entry(name)
        if old.shape != new.shape:
            yield f"tensor {name!r} has shape {old.shape} in {before.path} and {new.shape} in {after.path}."
        for checkpoint, entry in ((before, old), (after, new)):
            if entry.dtype not in SUPPORTED:
                yield (
                    f"tensor {name!r} of {checkpoint.path} is stored as {entry.dtype}; fp16, bf16 or fp32 "
                    "was expected. Take the model in one of these."
                )


def _compared(before: Checkpoint, after: Checkpoint, name: str) -> tuple[str, Tensor | None, list[str]]:
    """A tensor's name, which elements differ in their bits, None where none do, and why it cannot be had."""
    entry, other = before.entry(name), after.entry(name)
    marks, fits, finite = [], True, True
    for old, new in _side_by_side(entry, other):
        stored = new.to(old.dtype)
        fits = fits and torch.equal(bits_of(stored.to(new.dtype)), bits_of(new))
        finite = finite and all_finite(stored)
        marks.append(bits_of(old) != bits_of(stored))
    same = not any(bool(marked.any()) for marked in marks)
    if not fits:
        what = f"tensor {name!r} has values that {entry.dtype}, the base's type, cannot hold"
        way = f"Convert the base to {other.dtype}, or the edited checkpoint to {entry.dtype}, first."
        return name, None, [f"{what}. {way}"]
    if not (finite or same):
        what = f"tensor {name!r} of {after.path} holds NaN or infinity"
        return name, None, [f"{what}; finite numbers were expected. Audit it."]
    return name, None if same else torch.cat(marks) if entry.shape else marks[0], []


def _side_by_side(first: TensorEntry, second: TensorEntry) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of two tensors of one shape, a few at a time."""
    if not first.shape or first.transposed or second.transposed:
        yield read_tensor(first), read_tensor(second)
        return
    rows, row = first.shape[0], prod(first.shape[1:]) * max(first.dtype.itemsize, second.dtype.itemsize)
    step = max(1, CHUNK_BYTES // max(1, row))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        yield read_rows(first, start, stop), read_rows(second, start, stop)


def _form(
    before: Checkpoint, after: Checkpoint, name: str, differs: Tensor, rank: int | None, *, keep_old: bool
) -> tuple[Form, float]:
    """The change of one tensor, and the largest error of an element that it makes."""
    dtype = before.entry(name).dtype
    new = after.read(name).to(dtype)
    if rank is None or new.ndim < 2:
        return smallest(differs, new, before.read(name) if keep_old else None), 0.0
    old = before.read(name)
    difference = (new.double() - old.double()).flatten(start_dim=1)
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    root = values[:rank].sqrt()
    form = LowRank(*on_grid(left[:, :rank] * root, root[:, None] * right[:rank]))
    made = edited_by([(form, 1.0)], "", old)  # with both of its roundings
    return form, float((made.double() - new.double()).abs().max())


def _kept(spool: Spool, form: Form) -> Form:
    """The same change with its new values on the disk; factors are small."""
    if not isinstance(form, Replace):
        return form
    old = None if form.old is None else spool.keep(form.old)
    return with_index(replace(form, new=spool.keep(form.new), old=old), spool.keep)


def smallest(differs: Bool[Tensor, "*shape"], new: Tensor, old: Tensor | None = None) -> Replace:
    """New values for the elements that differ, in the form of fewest bytes.

    Args:
        differs: Which elements differ.
        new: The new weight.
        old: The old one, to store its values too.
    """
    marks: dict[Kind, Tensor | None] = {"all": None}
    if not bool(differs.all()):
        marks["elements"] = differs.flatten()
        if new.ndim > 1:
            marks["rows"] = differs.flatten(start_dim=1).any(dim=1)
            marks["columns"] = differs.transpose(0, 1).flatten(start_dim=1).any(dim=1)
    floors = {kind: _least_bytes(kind, marked, new, old) for kind, marked in marks.items()}
    made: dict[Kind, Replace] = {}
    for kind in sorted(floors, key=lambda kind: floors[kind]):  # what cannot be smaller is never made
        if all(floors[kind] <= _bytes(form) for form in made.values()):
            made[kind] = _replace(kind, marks[kind], new, old)
    return min((made[kind] for kind in marks if kind in made), key=_bytes)


def _least_bytes(kind: Kind, marks: Tensor | None, new: Tensor, old: Tensor | None) -> int:
    """What a form takes at least: its values, and the shortest index that may be."""
    size = new.element_size() * (1 if old is None else 2)
    if marks is None:
        return new.numel() * size
    count = int(marks.sum())
    if kind == "elements":
        return count * size + min(count, -(-len(marks) // 8))
    return count * (new.numel() // len(marks)) * size


def _replace(kind: Kind, marks: Tensor | None, new: Tensor, old: Tensor | None) -> Replace:
    index = None if marks is None else marks.nonzero()[:, 0]
    places = Places(kind, tuple(new.shape), index)
    return Replace(places, places.take(new), None if old is None else places.take(old))


def _bytes(form: Form) -> int:
    return sum(part.numel() * part.element_size() for part in encode(form).parts.values())
