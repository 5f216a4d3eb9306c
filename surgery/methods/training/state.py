"""The state of a training, and how it is stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from surgery.record import JSON
from surgery.store import StoredResult

_KINDS: Final = ("values", "averages", "first", "second", "best_values", "carried")


@dataclass(slots=True)
class State:
    """All that another update depends on.

    Attributes:
        step: Updates so far.
        losses: Training loss of each.
        held_out: Step and held-out loss of each look.
        best: Step of the look with the smallest one; 0 before the first.
        values: Of the leaves, by name; ``averages`` are their moving averages.
        first: Adam's moving mean of the gradient; ``second`` of its square.
        best_values: Averages at the best look.
        carried: What the objective goes on with.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    best_values: dict[str, Tensor] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)

    @property
    def waited(self) -> int:
        """Looks since the best one."""
        return sum(step > self.best for step, _ in self.held_out)

    def longest_wait(self) -> int:
        """The most looks in a row that brought nothing better."""
        best, waited, longest = float("inf"), 0, 0
        for _, loss in self.held_out:
            waited = 0 if loss < best else waited + 1
            best, longest = min(best, loss), max(longest, waited)
        return longest

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under one name each, for a store."""
        return {
            f"{kind}/{name}": one.cpu().contiguous()
            for kind in _KINDS
            for name, one in getattr(self, kind).items()
        }

    def told(self) -> Mapping[str, JSON]:
        """The rest as plain data."""
        return {
            "step": self.step,
            "losses": list(self.losses),
            "held_out": [list(one) for one in self.held_out],
            "best": self.best,
        }


def state_from(held: StoredResult) -> State:
    """What ``tensors`` and ``told`` were made of."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, one in held.tensors().items():
        kind, _, own = name.partition("/")
        parts[kind][own] = one
    return State(
        step=held.data["step"],
        losses=list(held.data["losses"]),
        held_out=[(step, loss) for step, loss in held.data["held_out"]],
        best=held.data["best"],
        **parts,
    )
