"""Whether a checkpoint is the base of a patch, already has it, or is something else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from surgery.checkpoint.digest import Digest, entry_digest
from surgery.checkpoint.layout import Checkpoint
from surgery.errors import PatchError, nearest, raise_all
from surgery.patch.model import SUPPORTED, Change, Patch

_OTHER_BASE: Final = (
    "Applying takes a fine-tune as well (--allow-other-base); the outcome is then not claimed."
)

Agreement = Literal["bytes", "value16"]
"""How a tensor agrees with a digest: bit for bit, or after rounding to half precision with -0 read as +0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How one tensor of a checkpoint stands to a patch; None where it does not agree."""

    before: Agreement | None
    after: Agreement | None

    @property
    def word(self) -> Literal["before", "after", "both", "neither"]:
        """Where the tensor stands; the better agreement wins, ``both`` where the patch changes nothing."""
        if self.before == self.after:
            return "both" if self.before else "neither"
        if self.before is None or self.after == "bytes":
            return "after"
        return "before"


def state_of(change: Change, found: Digest, stored: torch.dtype) -> State:
    """How a tensor with the digest ``found``, stored as ``stored``, stands to a patch that changes it so.

    Where only bytes can tell before from after, in the patch's own precision, other bytes are no outcome.
    """
    before = agreement(found, change.before)
    after: Agreement | None = "bytes" if found.bytes == change.after.bytes else None
    if after is None and change.is_outcome(found.value16, stored):
        alike = before == "value16" and stored == change.dtype and change.before.bytes != change.after.bytes
        after = None if alike else "value16"
    return State(before=before, after=after)


def agreement(found: Digest, recorded: Digest) -> Agreement | None:
    """How two digests of tensors of one name agree."""
    if found.bytes == recorded.bytes:
        return "bytes"
    return "value16" if found.value16 == recorded.value16 else None


def refuse_misfits(patch: Patch, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that lacks touched tensors, has them in other shapes, or has second copies of them.

    Raises:
        PatchError: listing every one.
    """
    raise_all(PatchError, [*shape_faults(patch, checkpoint), *surplus_faults(patch, checkpoint)])


def match_base(
    patch: Patch, checkpoint: Checkpoint, found: Mapping[str, Digest] | None = None
) -> dict[str, Agreement]:
    """How each touched tensor of ``checkpoint`` agrees with the base of the patch.

    Args:
        patch: The patch.
        checkpoint: Perhaps its base.
        found: The digests of the touched tensors, where they are known already.

    Raises:
        PatchError: listing every touched tensor that is missing, has another shape or other values; or
            when the patch was applied already.
    """
    refuse_misfits(patch, checkpoint)
    if found is None:
        found = {name: entry_digest(name, checkpoint.entry(name)) for name in patch.changes}
    agreements = match_any(patch, checkpoint, found)
    faults = [
        f"{base_fault(name, patch.changes[name], checkpoint, found[name])} {_OTHER_BASE}"
        for name, agreed in agreements.items()
        if agreed is None
    ]
    raise_all(PatchError, faults)
    return {name: agreed for name, agreed in agreements.items() if agreed is not None}


def match_very_base(patch: Patch, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Refuse a checkpoint that is not the base of the patch, or whose ``names`` are not its very bytes.

    Raises:
        PatchError: as `match_base`, and listing every tensor that agrees in half precision only.
    """
    agreements = match_base(patch, checkpoint)
    raise_all(
        PatchError,
        [
            f"tensor {name!r} of {checkpoint.path} is the base's in half precision only; the very base was "
            "expected."
            for name in sorted(names)
            if agreements[name] != "bytes"
        ],
    )


def match_any(
    patch: Patch, checkpoint: Checkpoint, found: Mapping[str, Digest]
) -> dict[str, Agreement | None]:
    """The same for a checkpoint that may be another base, such as a fine-tune; None where values differ.

    Args:
        patch: The patch.
        checkpoint: Has every touched tensor, in its shape; see `refuse_misfits`.
        found: The digests of the touched tensors.

    Raises:
        PatchError: when the patch was applied already.
    """
    states = {
        name: state_of(change, found[name], checkpoint.entry(name).dtype)
        for name, change in patch.changes.items()
    }
    refuse_applied(states, str(checkpoint.path))
    return {name: state.before for name, state in states.items()}


def refuse_applied(states: Mapping[str, State], subject: str) -> None:
    """Refuse a second application.

    Raises:
        PatchError: when every tensor that the patch changes is as the patch leaves it.
    """
    words = {state.word for state in states.values()} - {"both"}
    if words == {"after"}:
        raise PatchError(
            f"{subject} has this patch already: its {len(states)} touched tensors are as it leaves them. "
            "A patch is applied once; revert it first, or use the base."
        )


def base_fault(name: str, change: Change, checkpoint: Checkpoint, found: Digest) -> str:
    """Why a tensor is not the base's: the two digests and the likeliest reason."""
    return (
        f"tensor {name!r} of {checkpoint.path} has the digest {found.bytes[:12]} (half precision "
        f"{found.value16[:12]}); this patch was made for {change.before.bytes[:12]} "
        f"({change.before.value16[:12]}). Is it another base, or patched or fine-tuned since?"
    )


def shape_faults(patch: Patch, checkpoint: Checkpoint) -> list[str]:
    """Touched tensors that the checkpoint lacks or has in another shape; or that it is of another family.

    The text encoders of two families may be alike in every number, and mean other things to their U-Nets.
    """
    faults = []
    families = {patch.architecture, checkpoint.architecture}
    if len(families - {"unknown"}) > 1:
        faults.append(
            f"{checkpoint.path} is a {checkpoint.architecture}; this patch was made for a "
            f"{patch.architecture}. Choose a checkpoint of that family."
        )
    for name, change in patch.changes.items():
        entry = checkpoint.tensors.get(name)
        if entry is None:
            guess = nearest(name, checkpoint.tensors)
            faults.append(
                f"{checkpoint.path} has no tensor {name!r} (nearest: {guess!r}). Is it the right base?"
            )
        elif entry.shape != change.shape:
            faults.append(
                f"tensor {name!r} of {checkpoint.path} has shape {entry.shape}; this patch was made for "
                f"{change.shape}. The base is a {patch.architecture}; is this one?"
            )
        elif entry.dtype not in SUPPORTED:
            faults.append(
                f"tensor {name!r} of {checkpoint.path} is stored as {entry.dtype}; fp16, bf16 or fp32 was "
                "expected. Take the model in one of these."
            )
    return faults


def surplus_faults(patch: Patch, checkpoint: Checkpoint) -> list[str]:
    """Second copies of a touched component, which would keep the old weights for whoever loads them."""
    way = (
        "surgery convert FOLDER --to folder -o NEW (--variant NAME says which weights stay)"
        if checkpoint.layout == "folder"
        else "surgery convert FILE --to single --averaged drop -o NEW"
    )
    return [
        f"{file} holds the weights of a touched component a second time, which the patch would leave as it "
        f"is. Apply it to a checkpoint without that copy: {way}"
        for file in surplus_copies(patch, checkpoint)
    ]


def surplus_copies(patch: Patch, checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Files with a second copy of a component that the patch touches."""
    touched = {name.split("/")[0] for name in patch.changes}
    return tuple(
        file
        for component in sorted(touched & checkpoint.weights.keys())
        for file in checkpoint.weights[component].surplus
    )
