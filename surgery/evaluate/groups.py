"""Which of several groups each picture shows: combinations of names on axes such as gender and skin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int

from surgery.judge import AXES, Labels, Trait, Verdicts

OTHER: Final = -1
"""A picture that clearly shows none of the groups."""
UNDECIDED: Final = -2
"""A picture of which the judge cannot tell the group."""
_CLEARLY: Final = 2.0  # times as likely as the next name


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One group of pictures of a phrase: what they show, how often they are wanted, and who asks for them.

    Attributes:
        traits: One on each axis; together they make the group.
        share: How large the group is to be (0 to 1).
        explicit: The phrase that asks for this group outright; empty where there is none.
    """

    traits: tuple[Trait, ...]
    share: float
    explicit: str = ""

    @property
    def title(self) -> str:
        """Its names, for tables."""
        return ", ".join(trait.name for trait in self.traits)


def group_faults(wanted: Sequence[Wanted], labels: Labels) -> list[str]:
    """Everything that keeps a judge from telling these groups apart."""
    traits = dict.fromkeys(trait for group in wanted for trait in group.traits)
    found = []
    for trait in traits:
        if trait.axis not in AXES:
            known = ", ".join(axis for axis in AXES if axis != "concept")
            found.append(f"no judge decides {trait.axis!r}; expected one of {known}. Name such an attribute.")
        elif trait.axis == "concept":
            found.append(
                "concepts do not exclude each other, so their shares say nothing. Name an attribute."
            )
        elif (fault := labels.fault(trait)) is not None:
            found.append(fault)
    return list(dict.fromkeys(found))


def sorted_into(wanted: Sequence[Wanted], verdicts: Verdicts) -> Int[np.ndarray[Any, Any], " pictures"]:
    """The number of each picture's group, ``OTHER`` or ``UNDECIDED``.

    A picture is decided when on every axis the likeliest name is at least twice as likely as the next.
    """
    axes = list(dict.fromkeys(trait.axis for group in wanted for trait in group.traits))
    found = np.full(len(verdicts), OTHER)
    for number, group in enumerate(wanted):
        shown = [verdicts.shows(trait) for trait in group.traits]
        found[np.logical_and.reduce(shown)] = number
    for axis in axes:
        ordered = np.sort(getattr(verdicts, axis), axis=1)
        if ordered.shape[1] > 1:
            found[ordered[:, -1] < _CLEARLY * ordered[:, -2]] = UNDECIDED
    return found


def counted(
    wanted: Sequence[Wanted], numbers: Int[np.ndarray[Any, Any], " pictures"]
) -> tuple[tuple[int, ...], int]:
    """Pictures of each group, and of none of them; the undecided count for neither."""
    counts = tuple(int((numbers == number).sum()) for number in range(len(wanted)))
    return counts, int((numbers == OTHER).sum())
