"""The one list of names, checkpoints/pocket-sd/concepts.json: concepts, styles, backgrounds, templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ZERO_WIDTH_JOINER = "\u200d"
SKIN_MODIFIERS = ("\U0001f3fb", "\U0001f3fc", "\U0001f3fd", "\U0001f3fe", "\U0001f3ff")
PERSONS = {"woman": "\U0001f469", "man": "\U0001f468"}
SIGNS = {"woman": "\u2640", "man": "\u2642"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    name: str
    emoji: str
    subgroup: str
    aliases: tuple[str, ...]
    share_man: float | None = None  # professions only: the stated bias of an unqualified prompt
    joined: bool = False  # the person is drawn as PERSON + ZWJ + emoji rather than emoji + ZWJ + sign

    @property
    def is_profession(self) -> bool:
        return self.share_man is not None

    def sequence(self, gender: str | None = None, skin: int | None = None) -> str:
        """What the font draws; professions need a gender and a skin tone (0 light … 4 dark)."""
        if gender is None or skin is None:
            return self.emoji
        if self.joined:
            return PERSONS[gender] + SKIN_MODIFIERS[skin] + ZERO_WIDTH_JOINER + self.emoji
        return self.emoji + SKIN_MODIFIERS[skin] + ZERO_WIDTH_JOINER + SIGNS[gender]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    concepts: tuple[Concept, ...]  # professions last
    left_out_subgroup: str
    genders: tuple[str, ...]
    gender_words: dict[str, str]
    skins: tuple[str, ...]
    share_skin: tuple[float, ...]
    backgrounds: dict[str, tuple[int, int, int]]
    styles: tuple[str, ...]
    templates: dict[str, tuple[str, ...]]

    @property
    def drawn(self) -> tuple[Concept, ...]:
        """The concepts that the diffusion model sees: all but the group that is left out."""
        return tuple(c for c in self.concepts if c.subgroup != self.left_out_subgroup)

    def index(self, name: str) -> int:
        return [c.name for c in self.concepts].index(name)


def read_vocabulary(path: Path) -> Vocabulary:
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    concepts = [
        Concept(name=c["name"], emoji=c["emoji"], subgroup=c["subgroup"], aliases=tuple(c["aliases"]))
        for c in raw["concepts"]
    ]
    concepts += [
        Concept(
            name=c["name"],
            emoji=c["emoji"],
            subgroup=c["subgroup"],
            aliases=tuple(c["aliases"]),
            share_man=c["share_man"],
            joined=c["joined"],
        )
        for c in raw["professions"]
    ]
    return Vocabulary(
        concepts=tuple(concepts),
        left_out_subgroup=raw["left_out_subgroup"],
        genders=tuple(raw["genders"]),
        gender_words=raw["gender_words"],
        skins=tuple(raw["skins"]),
        share_skin=tuple(raw["share_skin"]),
        backgrounds={name: (r, g, b) for name, (r, g, b) in raw["backgrounds"].items()},
        styles=tuple(raw["styles"]),
        templates={kind: tuple(texts) for kind, texts in raw["templates"].items()},
    )
