"""The nouns of an edit: what a person asks for, and the same as tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from surgery.anatomy import Span
from surgery.record import Finding

Kind: TypeAlias = Literal["update", "forget", "style", "rectify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptEdit:
    """One concept and what the edited model shall draw instead.

    ``update`` and ``rectify`` (alias → name) need a destination, or pictures of their own; ``forget`` without
    one gives the empty prompt, ``style`` gives "art". Without templates the kind's published ones are used.

    A ``blend`` stands in place of the destination: several destinations, each with its weight. Weights add up
    to 1 and may lie outside of 0 to 1, where the blend leans further to one than that one itself does.
    """

    source: str
    destination: str | None = None
    kind: Kind = "update"
    templates: tuple[str, ...] = ()
    weight: float = 1.0
    images: tuple[Path, ...] = ()
    seed: int = 0
    blend: tuple[tuple[str, float], ...] = ()

    @property
    def label(self) -> str:
        """How reports name the edit."""
        if self.blend:
            return f"{self.source} → {' | '.join(repr(phrase) for phrase, _ in self.blend)}"
        return f"{self.source} → {'its pictures' if self.destination is None else repr(self.destination)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A checked edit with its tokens: for each template the span of the source and of the destination.

    ``goals`` and ``goal_ids`` are None where only pictures say what to draw. ``source_ids`` and ``goal_ids``
    are the bare phrases' tokens, by which concepts are told apart. A blend has no goals itself; its ``parts``
    are the same source with one of its destinations each.
    """

    edit: ConceptEdit
    spans: tuple[Span, ...]
    goals: tuple[Span, ...] | None
    source_ids: tuple[int, ...]
    goal_ids: tuple[int, ...] | None
    parts: "tuple[Concept, ...]" = ()

    @property
    def label(self) -> str:
        """How reports name the edit."""
        return self.edit.label


def warning(kind: str, subject: str, message: str) -> Finding:
    """A finding that a person should look at."""
    return Finding(kind=kind, subject=subject, message=message, severity="warning")
