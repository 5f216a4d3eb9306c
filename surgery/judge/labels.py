"""What a judge can tell: the names on each axis, and which of them look alike to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from surgery.errors import JudgeError, nearest

Axis: TypeAlias = Literal["concept", "style", "background", "gender", "skin"]

AXES: Final[tuple[Axis, ...]] = ("concept", "style", "background", "gender", "skin")

#: The concept of a picture that shows nothing the judge knows.
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Trait:
    """Something that a picture may show: a name on one axis, a concept unless said otherwise."""

    name: str
    axis: Axis = "concept"

    def __str__(self) -> str:
        return self.name if self.axis == "concept" else f"{self.axis} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The names of each axis in the order of the judge's columns.

    ``merged`` leads from a concept that no judge could tell from another (a colour-only twin), and from a
    second name of a concept, to the one that stands for both; only that one has a column. Where concepts are
    ``exclusive``, each picture shows the likeliest and no other, as the field counts (top-1).
    """

    concept: tuple[str, ...]
    style: tuple[str, ...] = ()
    background: tuple[str, ...] = ()
    gender: tuple[str, ...] = ()
    skin: tuple[str, ...] = ()
    merged: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False

    @classmethod
    def by_axis(
        cls,
        names: Mapping[Axis, tuple[str, ...]],
        *,
        merged: Mapping[str, str] | None = None,
        exclusive: bool = False,
    ) -> "Labels":
        """The names of every axis from one table."""
        return cls(
            concept=names["concept"],
            style=names["style"],
            background=names["background"],
            gender=names["gender"],
            skin=names["skin"],
            merged=merged or {},
            exclusive=exclusive,
        )

    def of(self, axis: Axis) -> tuple[str, ...]:
        """All names on one axis."""
        names: tuple[str, ...] = getattr(self, axis)
        return names

    def column(self, trait: Trait) -> int:
        """The column that answers for a trait; look-alikes share one.

        Raises:
            JudgeError: when the judge does not know the name; the message has the nearest it knows.
        """
        fault = self.fault(trait)
        if fault is not None:
            raise JudgeError(fault)
        return self.of(trait.axis).index(self._representative(trait))

    def fault(self, trait: Trait) -> str | None:
        """Why the judge cannot answer for a trait, or None when it can."""
        known = self.of(trait.axis)
        if self._representative(trait) in known:
            return None
        if not known:
            return (
                f"this judge says nothing about {trait.axis}, and {trait} was asked; use a judge that does."
            )
        guess = nearest(trait.name, known)
        hint = f"Did you mean {guess!r}?" if guess else f"It knows for example {', '.join(known[:5])}."
        return (
            f"the judge knows {len(known)} names of {trait.axis}, and {trait.name!r} is none of them. {hint}"
        )

    def _representative(self, trait: Trait) -> str:
        return self.merged.get(trait.name, trait.name) if trait.axis == "concept" else trait.name
