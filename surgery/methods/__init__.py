"""The methods by the name that recipes call them, each loaded when it is first used."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Protocol

from surgery.checkpoint import Checkpoint
from surgery.delta import Delta
from surgery.errors import MethodError, nearest
from surgery.recipe import Recipe
from surgery.record import JSON, Finding, Work
from surgery.store import Store

_HOME: Final = {
    "cad": "surgery.methods.cad.recipe",
    "distill": "surgery.methods.distill.recipe",
    "emcid": "surgery.methods.emcid.recipe",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One combination of attributes' values that a debiased phrase is to show.

    Attributes:
        values: (attribute, value) of each attribute.
        phrase: What asks for it outright, such as ``female doctor``.
        share: How often it is to be drawn (0 to 1).
        weight: Its destination's part in the mixture.
    """

    values: tuple[tuple[str, str], ...]
    phrase: str
    share: float
    weight: float

    @property
    def title(self) -> str:
        """Its values, for tables."""
        return ", ".join(value for _, value in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """One phrase that an edit changes, and what its prompts are to show.

    ``destination`` is None for nothing in particular, or for what a person's own ``pictures`` show. A phrase
    that is debiased keeps its meaning and has ``groups`` instead, whose shares add up to 1; ``asked_as`` is
    how it stands in prompts. ``taught`` are the templates that the edit is made with.
    """

    source: str
    destination: str | None
    kind: str
    templates: tuple[str, ...] = ()
    pictures: bool = False
    groups: tuple[Group, ...] = ()
    asked_as: str = "{}"
    taught: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How sheets name it."""
        if self.groups:
            shares = (f"{100 * group.share:.0f} % {group.title}" for group in self.groups)
            return f"{self.source} → {' / '.join(shares)}"
        if self.kind == "amplify":
            return f"more {self.source}"
        return f"{self.source} → {self.destination or ('its pictures' if self.pictures else 'nothing')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a method made of one edit of a recipe.

    Attributes:
        delta: The weight change; the models it was computed with are as they were.
        replacements: The edited phrases, for sheets and for measuring the effect.
        preserved: Phrases that were kept on purpose; no measure of what was left alone by itself.
        keys: What it wrote at, as plain data for the patch to carry, so that a later edit leaves it there.
        report: Per edit and per layer figures, plain data.
        findings: What a person should know.
        lines: What the run tells people when it is done.
        made: How it was made, as plain data for the patch to remember beside the recipe: what the recipe left
            to defaults, and what was measured.
    """

    delta: Delta
    replacements: tuple[Replacement, ...]
    preserved: tuple[str, ...] = ()
    keys: tuple[JSON, ...] = ()
    report: Mapping[str, JSON] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    lines: tuple[str, ...] = ()
    made: Mapping[str, JSON] = field(default_factory=dict)


class Method(Protocol):
    """A method as recipes use it: a module with these functions."""

    def replacements(self, entry: Any, recipe: Recipe) -> tuple[Replacement, ...]:
        """What ``entry`` asks for, before anything of it is left out; ``run`` says what came of it."""

    def preserved(self, entry: Any) -> tuple[str, ...]:
        """Phrases that ``entry`` keeps on purpose: no measure of what is left alone by itself."""

    def work(self, entry: Any, recipe: Recipe, base: Checkpoint) -> Work:
        """What ``entry``, the method's part of an edit, will do; from headers alone."""

    def check(self, entry: Any, recipe: Recipe, base: Checkpoint, models: Any) -> Mapping[Hashable, str]:
        """Refuse what ``run`` would refuse, as far as it shows before anything is computed.

        Returns the label of each source by a key that is the same however the source is spelled.
        """

    def run(
        self,
        entry: Any,
        recipe: Recipe,
        base: Checkpoint,
        models: Any,
        store: Store | None,
        earlier: Sequence[JSON] = (),
    ) -> Outcome:
        """The edit itself; ``models`` is the base's pipeline and is left as it was.

        ``earlier`` are the ``keys`` of the edits that the base has in it already.
        """


def method(name: str) -> Method:
    """The method that recipes call ``name``.

    Raises:
        MethodError: when there is none; the message has the nearest name.
    """
    if name not in _HOME:
        guess = nearest(name, _HOME)
        hint = f"Did you mean {guess!r}?" if guess else f"There are: {', '.join(sorted(_HOME))}."
        raise MethodError(f"no method {name!r}. {hint}")
    module: Any = import_module(_HOME[name])
    found: Method = module
    return found
