"""Random scenes and their captions: what a picture shows and one of the many ways to say it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from drawings import BACKGROUND_HIDING_STYLES, Scene, Subject
from vocabulary import Concept, Vocabulary

GUIDED_SLOPE, GUIDED_OFFSET = 5.5, 0.6
PROFESSION_WEIGHT = 4.0  # a profession has ten looks, so it is drawn more often than a thing
MARK = "\x00"  # stands behind a subject's name until its place in the caption is known
PLURAL = frozenset(
    [
        "eyes",
        "grapes",
        "cherries",
        "blueberries",
        "pancakes",
        "french",
        "fries",
        "cutlery",
        "glasses",
        "jeans",
        "socks",
        "headphones",
        "scissors",
        "dice",
        "corn",
        "broccoli",
        "bread",
        "milk",
        "wine",
        "beer",
        "coffee",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How often a scene has what (shares of all scenes)."""

    pair: float = 0.14
    style: float = 0.16
    background_named: float = 0.4
    gender_named: float = 0.4
    skin_named: float = 0.3
    alias: float = 0.25
    article: float = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """A scene with its caption and what the caption says (None: left open).

    `ends` are the offsets in the caption behind the last character of each subject's name.
    """

    scene: Scene
    caption: str
    ends: tuple[int, ...]
    background: str | None
    gender: str | None
    skin: int | None


def trained_share(stated: float) -> float:
    """The share of men in the drawings of a profession that is to be *drawn* as a man in the stated share.

    Guidance draws the more frequent kind more often than it was seen. Measured at guidance 5: the log odds of
    a man come out as GUIDED_SLOPE times those of the drawings, plus GUIDED_OFFSET.
    """
    odds = (math.log(stated / (1 - stated)) - GUIDED_OFFSET) / GUIDED_SLOPE
    return 1 / (1 + math.exp(-odds))


def random_subject(vocabulary: Vocabulary, concept: Concept, rng: np.random.Generator) -> Subject:
    if concept.share_man is None:
        return Subject(concept=concept)
    gender = "man" if rng.random() < trained_share(concept.share_man) else "woman"
    return Subject(concept=concept, gender=gender, skin=int(rng.choice(5, p=vocabulary.share_skin)))


def with_article(phrase: str, rng: np.random.Generator, share: float) -> str:
    if rng.random() >= share or phrase.split()[-1] in PLURAL:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def random_scene(
    vocabulary: Vocabulary,
    concepts: tuple[Concept, ...],
    rng: np.random.Generator,
    shares: Shares,
    forbidden_pairs: frozenset[frozenset[str]] = frozenset(),
) -> Scene:
    weights = np.array([PROFESSION_WEIGHT if c.is_profession else 1.0 for c in concepts])
    count = 2 if rng.random() < shares.pair else 1
    while True:
        chosen = [
            concepts[i] for i in rng.choice(len(concepts), count, replace=False, p=weights / weights.sum())
        ]
        if frozenset(c.name for c in chosen) not in forbidden_pairs:
            break
    style = str(rng.choice(vocabulary.styles)) if count == 1 and rng.random() < shares.style else None
    return Scene(
        subjects=tuple(random_subject(vocabulary, c, rng) for c in chosen),
        background=str(rng.choice(list(vocabulary.backgrounds))),
        style=style,
    )


def caption(
    vocabulary: Vocabulary, scene: Scene, rng: np.random.Generator, shares: Shares, kind: str
) -> Captioned:
    """Says the scene with templates of `kind` ("train" or "test"); test captions use names, never aliases."""
    gender = skin = None
    phrases = []
    for subject in scene.subjects:
        names = subject.concept.aliases
        alias = kind == "train" and names and rng.random() < shares.alias
        phrase = str(rng.choice(names)) if alias else subject.concept.name
        if len(scene.subjects) == 1 and subject.gender is not None and rng.random() < shares.gender_named:
            gender = subject.gender
            phrase = f"{vocabulary.gender_words[gender]} {phrase}"
        phrase = with_article(phrase, rng, shares.article) + MARK
        if len(scene.subjects) == 1 and subject.skin is not None and rng.random() < shares.skin_named:
            skin = subject.skin
            phrase = f"{phrase} with {vocabulary.skins[skin]} skin"
        phrases.append(phrase)
    text = str(rng.choice(vocabulary.templates[kind])).format(" and ".join(phrases))
    background = None
    if scene.style is not None:
        text = str(rng.choice(vocabulary.templates["style"])).format(style=scene.style, subject=text)
    if scene.style not in BACKGROUND_HIDING_STYLES and rng.random() < shares.background_named:
        background = scene.background
        text += " " + str(rng.choice(vocabulary.templates["background"])).format(background=background)
    parts = text.split(MARK)
    ends = tuple(sum(map(len, parts[: number + 1])) for number in range(len(phrases)))
    return Captioned(
        scene=scene, caption="".join(parts), ends=ends, background=background, gender=gender, skin=skin
    )
