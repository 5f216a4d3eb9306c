"""What a simulated loader made of a file, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgery.export.loaders.engine import Refusal, Verdict
from surgery.export.loaders.table import Loader
from surgery.record import JSON

Lost = Literal["absent", "misapplied", "dropped", "refused", "unknown"]
"""What becomes of an edit that a loader does not hold; ``absent`` is one that the file does not carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The weight that a loader would hold, beside the one that the patch makes.

    Attributes:
        equal: Whether both have the same values in half precision.
        apart: The largest difference of an element.
    """

    equal: bool
    apart: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What becomes of a file in a loader.

    Attributes:
        rules: Version of the table of rules.
        refused: Why the loader refuses the file; empty when it takes it.
        verdicts: On every change in the file.
        lost: Edited tensors whose edit the loader would not hold, and what becomes of it.
        weights: Of edited tensors that are applied; empty without a base and a patch, and without those that
            are not computed.
        added_masks: How many tensors the file masks by differences, which hold at strength 1 alone.
    """

    loader: Loader
    rules: int
    file: Path
    refused: tuple[Refusal, ...]
    verdicts: tuple[Verdict, ...]
    lost: Mapping[str, Lost]
    weights: Mapping[str, Held]
    added_masks: int = 0

    @property
    def whole(self) -> bool:
        """Whether the loader takes the file and applies all of the edit."""
        return not self.refused and not self.lost

    def as_json(self) -> dict[str, JSON]:
        """The simulation as plain data for ``--json``."""
        return {
            "loader": self.loader.name,
            "source": {"what": self.loader.source.what, "date": self.loader.source.date},
            "rules": self.rules,
            "file": str(self.file),
            "whole": self.whole,
            "refused": [
                {"why": reason.why, "heard": reason.heard, "evidence": reason.evidence}
                for reason in self.refused
            ],
            "changes": [_as_json(verdict) for verdict in self.verdicts],
            "lost": dict(self.lost),
            "added_masks": self.added_masks,
            "weights": {
                name: {"equal": found.equal, "apart": found.apart} for name, found in self.weights.items()
            },
        }


def _as_json(verdict: Verdict) -> dict[str, JSON]:
    return {
        "tensor": verdict.change.tensor,
        "module": verdict.change.module.key,
        "form": verdict.change.form,
        "verdict": verdict.word,
        "heard": verdict.heard,
        "why": verdict.why,
        "evidence": verdict.evidence,
    }
