"""Take a patch out of a checkpoint again, to the byte."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from surgery.checkpoint.digest import Digest, TensorHash, entry_digest
from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.checkpoint.reader import read_blocks
from surgery.checkpoint.writer import Replacements, write_checkpoint
from surgery.delta.algebra import block
from surgery.delta.forms import Form, Replace
from surgery.errors import PatchError, raise_all
from surgery.patch.file import patch_digest
from surgery.patch.match import base_fault, shape_faults, state_of
from surgery.patch.model import Patch
from surgery.patch.undo import Undo, read_undo


def revert_patch(
    patch: Patch,
    edited: Path,
    out: Path,
    *,
    undo: Path | None = None,
    base: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``edited`` without the patch to ``out``: the files it was applied to, byte for byte.

    Adding and rounding lose bits, so the old ones come from the undo file, from the base, or from the patch
    where it carries them. Other patches that touch other tensors stay in; of several on one tensor, the last
    one applied comes out first.

    Args:
        patch: What to take out.
        edited: The checkpoint with the patch in it; it is only read.
        out: The new checkpoint.
        undo: The file that `apply_patch` wrote.
        base: The checkpoint the patch was applied to, at strength 1. Needed, or ``undo``, unless the patch
            has nothing but new values with the old ones beside them.
        overwrite: Allow ``out`` to be replaced.

    Raises:
        PatchError: when ``undo`` and ``base`` are both given, or neither and the old bits are nowhere; or
            when any of them does not belong to the patch.
        SurgeryError: when ``out`` exists, or the disk refuses.
    """
    checkpoint = open_checkpoint(edited)
    if undo is None and base is None:
        replacements = _from_itself(patch, checkpoint)
    elif undo is not None and base is None:
        replacements = _from_undo(patch, checkpoint, read_undo(undo))
    elif base is not None and undo is None:
        replacements = _from_base(patch, checkpoint, open_checkpoint(base))
    else:
        raise PatchError(
            "to revert, the undo file and the base were given; one of them was expected. Leave one out."
        )
    write_checkpoint(checkpoint, out, replacements, overwrite=overwrite)


def _from_itself(patch: Patch, checkpoint: Checkpoint) -> Replacements:
    """The old values that a patch of nothing but new values may carry."""
    forms = {
        name: [form for term in patch.terms for known, form in term.delta.terms.items() if known == name]
        for name in patch.changes
    }
    everything = [form for found in forms.values() for form in found]
    if not all(isinstance(form, Replace) and form.old is not None for form in everything):
        raise PatchError(
            "to revert, the undo file or the base was expected: this patch adds and rounds, or does not "
            "carry the old values, and rounding cannot be undone. Name one of them."
        )
    faults = shape_faults(patch, checkpoint)
    for name, change in patch.changes.items():
        if name in checkpoint.tensors:
            found = entry_digest(name, checkpoint.entry(name))
            faults += _undo_faults(name, checkpoint, found, change.before, change.after)
    raise_all(PatchError, faults)
    return {
        name: partial(
            _checked,
            name,
            patch.changes[name].before,
            checkpoint.entry(name),
            partial(_with_old, checkpoint, name, forms[name]),
        )
        for name in patch.changes
    }


def _with_old(checkpoint: Checkpoint, name: str, forms: Sequence[Form]) -> Iterator[Tensor]:
    for start, rows in read_blocks(checkpoint.entry(name)):
        weight = rows
        for form in forms:
            part = block(form, start, start + len(rows)) if rows.ndim else form
            if isinstance(part, Replace) and part.old is not None:
                weight = part.places.put(weight, part.old)
        yield weight


def _from_undo(patch: Patch, checkpoint: Checkpoint, undo: Undo) -> Replacements:
    if undo.patch != patch_digest(patch):
        raise PatchError(
            f"{undo.path} belongs to the patch {undo.patch[:12]}, not to {patch_digest(patch)[:12]}. "
            "Choose the undo file of this application."
        )
    faults = shape_faults(patch, checkpoint)
    faults += [
        f"{undo.path} lacks the old values of {name!r}, which the patch changes. Revert with the base."
        for name in sorted(patch.changes.keys() - undo.digests.keys())
    ]
    for name, (before, after) in undo.digests.items():
        if name in checkpoint.tensors:
            found = entry_digest(name, checkpoint.entry(name))
            faults += _undo_faults(name, checkpoint, found, before, after)
    raise_all(PatchError, faults)
    return {
        name: partial(
            _checked, name, before, checkpoint.entry(name), partial(_restored, checkpoint, undo, name)
        )
        for name, (before, after) in undo.digests.items()
        if before != after
    }


def _restored(checkpoint: Checkpoint, undo: Undo, name: str) -> Iterator[Tensor]:
    return undo.restore(name, (rows for _, rows in read_blocks(checkpoint.entry(name))))


def _checked(
    name: str, expected: Digest, entry: TensorEntry, restore: Callable[[], Iterator[Tensor]]
) -> Iterator[Tensor]:
    """The restored tensor in blocks; refused at the end when it is not what was there before."""
    hashes = TensorHash(name, entry.dtype, entry.shape)
    for rows in restore():
        hashes.add(rows)
        yield rows
    found = hashes.digest()
    if found.bytes != expected.bytes:
        raise PatchError(
            f"tensor {name!r} would come back as {found.bytes[:12]} instead of {expected.bytes[:12]}; "
            "the undo file is damaged. Revert with the base."
        )


def _undo_faults(
    name: str, checkpoint: Checkpoint, found: Digest, before: Digest, after: Digest
) -> list[str]:
    if found.bytes == after.bytes:
        return []
    reason = "does not have the patch" if found.bytes == before.bytes else "was changed since, or is another"
    return [
        f"tensor {name!r} of {checkpoint.path} has the digest {found.bytes[:12]}; applying left "
        f"{after.bytes[:12]}. This checkpoint {reason}. Revert later patches first, in reverse order."
    ]


def _from_base(patch: Patch, checkpoint: Checkpoint, base: Checkpoint) -> Replacements:
    faults = [*shape_faults(patch, checkpoint), *shape_faults(patch, base)]
    raise_all(PatchError, faults)
    for name, change in patch.changes.items():
        of_base = entry_digest(name, base.entry(name))
        if state_of(change, of_base, base.entry(name).dtype).before is None:
            faults.append(base_fault(name, change, base, of_base))
        found = entry_digest(name, checkpoint.entry(name))
        if state_of(change, found, checkpoint.entry(name).dtype).after is None:
            faults.append(
                f"tensor {name!r} of {checkpoint.path} has the digest {found.bytes[:12]}; this patch leaves "
                f"{change.after.bytes[:12]}. Was it applied at another strength, or another patch after it? "
                "Then revert with the undo file, later patches first."
            )
        if base.entry(name).dtype != checkpoint.entry(name).dtype:
            faults.append(
                f"tensor {name!r} is {checkpoint.entry(name).dtype} in {checkpoint.path} and "
                f"{base.entry(name).dtype} in {base.path}; the base it was applied to was expected."
            )
    raise_all(PatchError, faults or _other_bits(patch, checkpoint, base))
    return {name: partial(_rows, base.entry(name)) for name in patch.changes}


def _rows(entry: TensorEntry) -> Iterator[Tensor]:
    return (rows for _, rows in read_blocks(entry))


def _other_bits(patch: Patch, checkpoint: Checkpoint, base: Checkpoint) -> list[str]:
    """A base that agrees in half precision only may be another one; then bytes would be lost."""
    faults = []
    for name in patch.changes:
        entry = base.entry(name)
        hashes = TensorHash(name, entry.dtype, entry.shape)
        for edit in patch.blocks(base, name):
            hashes.add(edit.after)
        if hashes.digest().bytes != entry_digest(name, checkpoint.entry(name)).bytes:
            faults.append(
                f"tensor {name!r} of {base.path} with the patch is not bit for bit {checkpoint.path}'s; "
                "the very base it was applied to was expected. Revert with the undo file, or with that base."
            )
    return faults
