"""What a checkpoint holds of a patch: nothing, all of it, or something else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgery.checkpoint.digest import Digest, Fingerprint, component_roots
from surgery.checkpoint.layout import open_checkpoint
from surgery.patch.match import Agreement, State, agreement, state_of, surplus_copies
from surgery.patch.model import Patch
from surgery.record import JSON

Word = Literal["before", "after", "both", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Where a checkpoint stands to a patch.

    Attributes:
        tensors: Per touched tensor, how it agrees with the patch's record before and after.
        untouched: Per component of the base, how the tensors that the patch leaves alone agree with it; None
            where one of them differs, or the component is missing.
        surplus: Files that hold a touched component a second time; a loader that asks for that variant gets
            weights that were not looked at.
    """

    checkpoint: Path
    tensors: Mapping[str, State]
    untouched: Mapping[str, Agreement | None]
    surplus: tuple[Path, ...] = ()

    @property
    def word(self) -> Word:
        """One word for the whole; ``neither`` also where something else differs or a second copy lies."""
        words = {state.word for state in self.tensors.values()} - {"both"}
        if None in self.untouched.values() or len(words) > 1 or self.surplus:
            return "neither"
        return words.pop() if words else "both"

    def as_json(self) -> dict[str, JSON]:
        """The report as plain data for ``--json``."""
        return {
            "checkpoint": str(self.checkpoint),
            "state": self.word,
            "tensors": {
                name: {"state": state.word, "before": state.before, "after": state.after}
                for name, state in self.tensors.items()
            },
            "untouched": dict(self.untouched),
            "surplus": [str(path) for path in self.surplus],
        }


def verify_patch(patch: Patch, checkpoint: Path) -> VerifyReport:
    """Hold every tensor of ``checkpoint`` against the patch's record.

    Raises:
        CheckpointError: when the checkpoint cannot be read.
    """
    opened = open_checkpoint(checkpoint)
    found = opened.fingerprint()
    states = {
        name: state_of(change, found.tensors[name], opened.entry(name).dtype)
        if name in found.tensors
        else State(before=None, after=None)
        for name, change in patch.changes.items()
    }
    restored = _with_base_digests(patch, found)
    untouched = {
        component: agreement(restored[component], root) if component in restored else None
        for component, root in patch.roots.items()
    }
    return VerifyReport(
        checkpoint=checkpoint, tensors=states, untouched=untouched, surplus=surplus_copies(patch, opened)
    )


def _with_base_digests(patch: Patch, found: Fingerprint) -> dict[str, Digest]:
    """Component fingerprints as they would be with the touched tensors as in the base."""
    tensors = dict(found.tensors)
    tensors |= {name: change.before for name, change in patch.changes.items()}
    return component_roots(tensors)
