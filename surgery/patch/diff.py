"""The exact patch that leads from one checkpoint to another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from surgery.checkpoint.beside import beside_weights
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.delta.delta import Delta
from surgery.delta.exact import on_grid
from surgery.delta.forms import Form, LowRank, Replace
from surgery.delta.places import Kind, Places
from surgery.errors import PatchError, nearest, raise_all
from surgery.patch.encoding import encode
from surgery.patch.model import SUPPORTED, Patch, make_patch
from surgery.patch.rounding import bits_of
from surgery.patch.terms import Term, all_finite
from surgery.patch.terms import edited as edited_by
from surgery.progress import track

SOURCE = "diff"


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
    for name in track(sorted(before.tensors), "diff", unit="tensor"):
        old = before.read(name)
        new, fault = _as_stored(name, after.read(name), old.dtype)
        if not all_finite(new) and not torch.equal(bits_of(old), bits_of(new)):
            fault.append(
                f"tensor {name!r} of {edited} holds NaN or infinity; finite numbers were expected. Audit it."
            )
        faults += fault
        if fault or torch.equal(bits_of(old), bits_of(new)):
            continue
        forms[name] = _form(old, new, rank, keep_old=keep_old)
        errors[name] = _error(forms[name], old, new)
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


def _as_stored(name: str, new: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[str]]:
    """New values in the base's type, and why they are not to be had so."""
    stored = new.to(dtype)
    if not torch.equal(bits_of(stored.to(new.dtype)), bits_of(new)):
        return stored, [
            f"tensor {name!r} has values that {dtype}, the base's type, cannot hold. Convert the base to "
            f"{new.dtype}, or the edited checkpoint to {dtype}, first."
        ]
    return stored, []


def _form(old: Tensor, new: Tensor, rank: int | None, *, keep_old: bool) -> Form:
    if rank is None or old.ndim < 2:
        return smallest(old, new, keep_old=keep_old)
    difference = (new.double() - old.double()).flatten(start_dim=1)
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    root = values[:rank].sqrt()
    return LowRank(*on_grid(left[:, :rank] * root, root[:, None] * right[:rank]))


def smallest(old: Tensor, new: Tensor, *, keep_old: bool = False) -> Replace:
    """New values for the elements that differ, in the form of fewest bytes."""
    differs = bits_of(old) != bits_of(new)
    candidates = [_replace("all", None, old, new, keep_old)]
    if not bool(differs.all()):
        candidates.append(_replace("elements", differs.flatten(), old, new, keep_old))
        if old.ndim > 1:
            candidates.append(_replace("rows", differs.flatten(start_dim=1).any(dim=1), old, new, keep_old))
            columns = differs.transpose(0, 1).flatten(start_dim=1).any(dim=1)
            candidates.append(_replace("columns", columns, old, new, keep_old))
    return min(candidates, key=_bytes)


def _replace(kind: Kind, marks: Tensor | None, old: Tensor, new: Tensor, keep_old: bool) -> Replace:
    index = None if marks is None else marks.nonzero()[:, 0]
    places = Places(kind, tuple(old.shape), index)
    return Replace(places, places.take(new), places.take(old) if keep_old else None)


def _bytes(form: Replace) -> int:
    return sum(part.numel() * part.element_size() for part in encode(form).parts.values())


def _error(form: Form, old: Tensor, new: Tensor) -> float:
    if isinstance(form, Replace):
        return 0.0
    made = edited_by([(form, 1.0)], "", old)  # with both of its roundings
    return float((made.double() - new.double()).abs().max())
