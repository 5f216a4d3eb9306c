"""Write a checkpoint with a patch in it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from surgery.checkpoint.digest import TensorHash
from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.checkpoint.outputs import refuse_existing
from surgery.checkpoint.writer import refuse_foreign, refuse_overlap, write_checkpoint
from surgery.errors import PatchError
from surgery.patch.file import patch_digest
from surgery.patch.match import Agreement, match_any, match_base, refuse_misfits, state_of
from surgery.patch.model import Patch
from surgery.patch.rounding import changed_elements
from surgery.patch.terms import refuse_strength
from surgery.patch.undo import Edits, Overwritten, undo_file
from surgery.progress import track
from surgery.threads import one_thread_each

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedTensor:
    """What applying does to one tensor.

    Attributes:
        base: How the tensor agrees with the patch's base; None when another base was allowed and this is one.
        result: How the outcome agrees with the patch's record; None where nothing is claimed: at a strength
            other than 1, on a base in another precision than the patch was made for, or on another base.
        changed: Number of elements whose bits change.
    """

    base: Agreement | None
    result: Agreement | None
    changed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReport:
    """What applying a patch did; tensors by canonical name."""

    out: Path
    strength: float
    tensors: Mapping[str, AppliedTensor]

    @property
    def exact(self) -> bool:
        """Whether every touched tensor is what the patch records, bit for bit."""
        return all(tensor.result == "bytes" for tensor in self.tensors.values())

    @property
    def other_base(self) -> int:
        """How many touched tensors did not have the values that the patch was made for."""
        return sum(tensor.base is None for tensor in self.tensors.values())


def apply_patch(
    patch: Patch,
    base: Path,
    out: Path,
    *,
    strength: float = 1.0,
    undo: Path | None = None,
    overwrite: bool = False,
    allow_other_base: bool = False,
) -> ApplyReport:
    """Write ``base`` with the patch in it to ``out``, in the layout of ``base``.

    Everything is computed and checked before the first byte is written, and computed again while writing,
    some rows at a time, so that memory does not grow with the checkpoint.

    Args:
        patch: What to apply.
        base: The checkpoint the patch was made for; it is only read.
        out: The new checkpoint.
        strength: 1 as made; 0 changes nothing; at others than 1 the recorded outcome is not claimed.
        undo: Also write a file there that takes the patch out again without the base.
        overwrite: Allow ``out`` and ``undo`` to be replaced.
        allow_other_base: Take a checkpoint of the same shapes with other values, such as a fine-tune of the
            base. The change is the patch's own, the outcome is not the recorded one; only ``undo`` takes it
            out again, and nothing notices a second application.

    Raises:
        PatchError: when the checkpoint is not the patch's base (unless allowed), has the patch already, or
            the outcome is not the recorded one.
        SurgeryError: when ``out`` exists, or the disk refuses.
    """
    refuse_strength(strength)
    checkpoint = open_checkpoint(base)
    _refuse_places(checkpoint, out, undo, overwrite)
    refuse_misfits(patch, checkpoint)
    edits = partial(patch.blocks, checkpoint, strength=strength)
    with one_thread_each() as pool:
        found = pool.map(lambda name: _overwritten(name, checkpoint.entry(name), edits), patch.changes)
        bars = track(found, "check", total=len(patch.changes), unit="tensor")
        planned = dict(zip(patch.changes, bars, strict=True))
    matched = match_any if allow_other_base else match_base
    agreements = matched(patch, checkpoint, {name: one.before for name, one in planned.items()})
    tensors = {
        name: _applied(patch, name, overwritten, agreements[name], strength)
        for name, overwritten in planned.items()
    }
    replacements = {name: partial(_after, edits, name) for name in planned if planned[name].changed}
    # the old bits are safe before the new checkpoint stands
    kept: AbstractContextManager[None] = nullcontext()
    if undo is not None:
        kept = undo_file(undo, patch_digest(patch), planned, edits, overwrite=overwrite)
    with kept:
        write_checkpoint(checkpoint, out, replacements, overwrite=overwrite)
    return ApplyReport(out=out, strength=strength, tensors=tensors)


def _after(edits: Edits, name: str) -> Iterator[Tensor]:
    return (edit.after for edit in edits(name))


def _overwritten(name: str, entry: TensorEntry, edits: Edits) -> Overwritten:
    before, after = (TensorHash(name, entry.dtype, entry.shape) for _ in range(2))
    changed = 0
    for edit in edits(name):
        before.add(edit.before)
        after.add(edit.after)
        changed += changed_elements(*edit)
    return Overwritten(
        before=before.digest(), after=after.digest(), dtype=entry.dtype, shape=entry.shape, changed=changed
    )


def _applied(
    patch: Patch, name: str, overwritten: Overwritten, base: Agreement | None, strength: float
) -> AppliedTensor:
    """The report on one tensor, after its outcome was held against the patch's record.

    Raises:
        PatchError: when a base that agrees bit for bit leads to another outcome.
    """
    change, recorded = patch.changes[name], patch.changes[name].after
    result = state_of(change, overwritten.after, overwritten.dtype).after if strength == 1 else None
    if strength == 1 and base == "bytes" and result != "bytes":
        raise PatchError(
            f"tensor {name!r} came out as {overwritten.after.bytes[:12]}; the patch records "
            f"{recorded.bytes[:12]}. The patch is damaged, or this machine adds wrongly."
        )
    if base is None:
        _log.warning("%s: not what the patch was made for; its outcome is not claimed", name)
    elif strength == 1 and result is None:
        _log.warning("%s: the base has another precision than the patch's; its outcome is not claimed", name)
    return AppliedTensor(base=base, result=result, changed=overwritten.changed)


def _refuse_places(checkpoint: Checkpoint, out: Path, undo: Path | None, overwrite: bool) -> None:
    """Before anything is written: a refused apply leaves no undo file behind."""
    base = checkpoint.path
    refuse_overlap(base, out)
    refuse_foreign(out, checkpoint.layout)
    refuse_existing(out, overwrite)
    if undo is not None:
        for folder in (base, out):
            if folder.resolve() in (undo.resolve(), *undo.resolve().parents):
                raise PatchError(
                    f"the undo file {undo} would lie in {folder}; a place beside it was expected."
                )
