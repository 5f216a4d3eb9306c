"""Distances between sets of pictures against closed forms."""

from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from surgery.evaluate.likeness import Look, frechet_distance, likeness_scores
from surgery.judge import Labels, Verdicts


def drawn(rng: np.random.Generator, mean: float, spread: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows: np.ndarray[Any, Any] = rng.normal(size=(4000, len(spread))) * spread + mean
    return rows.astype(np.float32)


def test_the_distance_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    one, other = drawn(rng, 0.0, np.ones(6)) @ mix, drawn(rng, 0.4, np.linspace(1, 3, 6))
    first, second = np.cov(one.astype(float), rowvar=False), np.cov(other.astype(float), rowvar=False)
    gap = one.mean(0, dtype=float) - other.mean(0, dtype=float)
    expected = gap @ gap + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_a_shift_alone_is_its_square() -> None:
    one = drawn(np.random.default_rng(1), 0.0, np.ones(4))
    assert frechet_distance(one, one + np.float32(0.5)) == pytest.approx(4 * 0.25, rel=1e-4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def look(pictures: np.ndarray[Any, Any]) -> Look:
    none = np.zeros((len(pictures), 0), np.float32)
    verdicts = Verdicts(
        labels=Labels(concept=()), concept=none, style=none, background=none, gender=none, skin=none
    )
    features = pictures.reshape(len(pictures), -1)[:, :2].astype(np.float32)
    return Look(verdicts=verdicts, features=features, small=pictures)


def test_pictures_of_other_seeds_have_moved_by_one() -> None:
    rng = np.random.default_rng(2)
    before = [look(rng.integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)) for _ in range(4)]
    shuffled = [look(np.roll(one.small, 1, axis=0)) for one in before if one.small is not None]
    moved = next(score for score in likeness_scores(before, shuffled, None) if score.name == "moved")
    assert moved.value == pytest.approx(1)
    assert moved.low <= 1 <= moved.high
