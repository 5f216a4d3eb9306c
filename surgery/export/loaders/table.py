"""The table of rules about loaders, read and checked."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from surgery.errors import PatchError, nearest

Word = Literal["applied", "misapplied", "dropped", "refused", "unknown"]
Evidence = Literal["ran", "read", "issue", "none"]

FAMILIES: Final[Mapping[str, str]] = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "xl": "stable-diffusion-xl-v1-base",
}
"""The table's words for ModelSpec's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was run or read: which program at which version, and when."""

    what: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What loaders do with changes of some kind; the words are those of ``rules.toml``."""

    loaders: tuple[str, ...]
    verdict: Word
    evidence: Evidence
    why: str = ""
    heard: str = ""
    namings: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    when: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRule:
    """When loaders refuse a whole file."""

    loaders: tuple[str, ...]
    when: str
    why: str
    heard: str
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """One program that loads LoRA-like files.

    Attributes:
        scale: Which function of `surgery.export.loaders.arithmetic` gives the scale of a LoRA.
        factors: Precision of the factors that are multiplied: the one that the model runs in, or fp32.
        sum: Precision of the sum of weight and change.
        differences: Precision in which a difference is added.
        unmatched_limit: More keys without a layer than this, and the file is refused.
        rules: Those about it, in the order in which they are tried.
    """

    name: str
    title: str
    source: Source
    scale: str
    factors: Literal["run", "single"]
    sum: Literal["run", "single"]
    differences: Literal["run", "single", "stored"]
    unmatched_limit: int | None
    rules: tuple[Rule, ...]
    file_rules: tuple[FileRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rules, and the version of the table."""

    version: int
    loaders: Mapping[str, Loader]


def loader(name: str) -> Loader:
    """The loader of that name.

    Raises:
        PatchError: when there is none; the message names the nearest one.
    """
    known = rule_table().loaders
    if name not in known:
        guess = nearest(name, known)
        hint = f"Did you mean {guess!r}?" if guess else f"There are {', '.join(known)}."
        raise PatchError(f"no loader {name!r} is known. {hint}")
    return known[name]


@cache
def rule_table() -> Table:
    """The table that ships with the program."""
    raw = tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))
    sources = {name: Source(**text) for name, text in raw["source"].items()}
    rules = [_rule(text) for text in raw["rule"]]
    file_rules = [FileRule(**{**text, "loaders": tuple(text["loaders"])}) for text in raw["file_rule"]]
    loaders = {
        name: Loader(
            name=name,
            rules=tuple(rule for rule in rules if name in rule.loaders),
            file_rules=tuple(rule for rule in file_rules if name in rule.loaders),
            **{"unmatched_limit": None, **text, "source": sources[text["source"]]},
        )
        for name, text in raw["loader"].items()
    }
    return Table(version=raw["version"], loaders=loaders)


def _rule(text: Mapping[str, Any]) -> Rule:
    words = {"verdict", "evidence", "why", "heard"}
    values: dict[str, Any] = {key: value if key in words else tuple(value) for key, value in text.items()}
    return Rule(**values)
