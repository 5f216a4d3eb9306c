"""Pictures by the font that the checkpoint's own pictures came from: of what it never saw, or draws badly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from surgery.progress import track

sys.path.insert(0, str(Path(__file__).parent.parent / "pocket"))


def vocabulary_of(base: Path) -> Any:
    """What the checkpoint's pictures show."""
    from vocabulary import read_vocabulary

    return read_vocabulary(base / "concepts.json")


def never_seen(base: Path) -> list[str]:
    """The concepts that the checkpoint's training left out."""
    vocabulary = vocabulary_of(base)
    return [one.name for one in vocabulary.concepts if one.subgroup == vocabulary.left_out_subgroup]


def font_pictures(base: Path, names: Sequence[str], count: int, seed: int, folder: Path) -> tuple[Path, ...]:
    """One concept in each picture, in turns, on backgrounds drawn evenly; made once."""
    paths = tuple(folder / f"{number:05d}.png" for number in range(count))
    if all(path.is_file() for path in paths):
        return paths
    from drawings import EmojiFont, Scene, Subject, draw

    vocabulary, font, rng = vocabulary_of(base), EmojiFont(), np.random.default_rng(seed)
    by_name = {one.name: one for one in vocabulary.concepts}
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(track(paths, "drawing", unit="picture")):
        background = str(rng.choice(list(vocabulary.backgrounds)))
        subject = Subject(concept=by_name[names[number % len(names)]])
        scene = Scene(subjects=(subject,), background=background)
        Image.fromarray(draw(font, vocabulary, scene, rng)).save(path)
    return paths
