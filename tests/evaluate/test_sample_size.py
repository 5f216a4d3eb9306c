from math import sqrt
from typing import Any

import numpy as np
import pytest

from surgery.evaluate import (
    SampleSize,
    Spread,
    advice,
    design_effect,
    measured_spread,
    p_value,
    sample_size,
    smallest_loss,
)
from surgery.evaluate.sample_size import cautious

Rows = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def drawn(rng: np.random.Generator, size: SampleSize, churn: float, losses: np.ndarray[Any, Any]) -> Rows:
    """Pairs of which ``churn`` differ by chance, and more are lost, with a rate for each phrase."""
    groups = np.repeat(np.arange(size.phrases), size.pictures // size.phrases)
    kind = rng.random(size.pictures)
    lost = kind < churn / 2 + losses[groups]
    won = kind > 1 - churn / 2
    return ~won, ~lost, groups


def power(size: SampleSize, churn: float, rate: float, hurt: float, *, times: int = 400) -> float:
    """How often a loss is found that takes ``rate`` of the pictures of a share ``hurt`` of the phrases."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(times):
        losses = np.where(rng.random(size.phrases) < hurt, rate, 0.0)
        found += p_value(*drawn(rng, size, churn, losses)) < 0.05
    return found / times


def test_the_sample_size_is_connors_with_the_continuity_correction() -> None:
    # one in five pairs differs: 1.959964 sqrt(0.2) + 0.841621 sqrt(0.2 - 0.05^2) = 1.250549, and so
    # (1.250549 / 0.05)^2 = 625.5 pairs, or 665 with n (1 + sqrt(1 + 4 / (0.05 n)))^2 / 4
    plain = (1.250549 / 0.05) ** 2
    corrected = plain * (1 + sqrt(1 + 4 / (0.05 * plain))) ** 2 / 4
    assert sample_size(0.05, Spread(churn=0.15), 1).pictures == pytest.approx(corrected, abs=1)
    assert sample_size(0.05, Spread(churn=0.15), 1).phrases == 665


def test_like_pictures_take_more_of_them() -> None:
    alone = sample_size(0.05, Spread(churn=0.15), 1)
    alike = sample_size(0.05, Spread(churn=0.15, likeness=0.2), 6)
    assert design_effect(6, 0.2) == 2
    assert alike.pictures == pytest.approx(2 * alone.pictures, abs=6)
    assert alike.pictures == 6 * alike.phrases
    assert sample_size(0.05, Spread(churn=0.15, likeness=1), 6).phrases == pytest.approx(alone.phrases, abs=1)


@pytest.mark.parametrize(
    ("churn", "rate", "hurt"),
    [
        (0.15, 0.05, 1.0),  # every phrase loses a little
        (0.10, 0.50, 0.1),  # a tenth of the phrases lose half
        (0.0, 0.05, 1.0),  # the same pictures but for the loss
    ],
)
def test_the_advised_size_finds_the_loss_about_as_often_as_asked(
    churn: float, rate: float, hurt: float
) -> None:
    loss = rate * hurt
    # by the law of total variance: what the phrases' own rates add to the variance of a change
    between = hurt * (1 - hurt) * rate**2
    spread = Spread(churn=churn, likeness=between / (churn + loss - loss**2))
    size = sample_size(loss, spread, 6)
    # 80 % less three standard deviations of 400 tries; small counts come in steps, and may find more
    assert 0.74 <= power(size, churn, rate, hurt) <= 0.92


def test_half_the_advised_size_finds_it_much_less_often() -> None:
    size = sample_size(0.05, Spread(churn=0.15), 6)
    half = SampleSize(pictures=size.phrases // 2 * 6, phrases=size.phrases // 2)
    assert power(half, 0.15, 0.05, 1.0, times=200) < 0.65


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("spread", [Spread(churn=0.2), Spread(churn=0.02, likeness=0.3)])
def test_the_smallest_loss_is_the_one_that_takes_so_many_pictures(loss: float, spread: Spread) -> None:
    size = sample_size(loss, spread, 6)
    found = smallest_loss(size, spread)
    fewer = smallest_loss(SampleSize(pictures=size.pictures - 6, phrases=size.phrases - 1), spread)
    assert found is not None
    assert found <= loss
    assert fewer is None or fewer > loss


def test_five_phrases_find_nothing_however_many_pictures_they_have() -> None:
    assert smallest_loss(SampleSize(pictures=50_000, phrases=5), Spread(churn=0.1)) is None
    assert smallest_loss(SampleSize(pictures=600, phrases=6), Spread(churn=0.1)) is not None
    # the rarest of all swappings: two of 32, and two of 64
    groups, before = np.repeat(np.arange(6), 4), np.ones(24, bool)
    assert p_value(before[:20], ~before[:20], groups[:20]) == 2 / 32
    assert p_value(before, ~before, groups) == 2 / 64
    assert sample_size(0.5, Spread(churn=0), 100).phrases == 6


def test_spread_is_told_from_pairs_that_vary_as_planned() -> None:
    rng = np.random.default_rng(0)
    size = SampleSize(pictures=24_000, phrases=3_000)
    losses = np.where(rng.random(3_000) < 0.2, 0.5, 0.0)
    found = measured_spread(*drawn(rng, size, 0.1, losses))
    variance = 0.2 - 0.1**2  # pairs that differ: 0.1 by chance and 0.1 lost
    assert found.churn == pytest.approx(0.1, abs=0.01)
    assert found.likeness == pytest.approx(0.2 * 0.8 * 0.25 / variance, abs=0.03)


def test_phrases_that_change_as_one_are_wholly_alike() -> None:
    after = np.repeat([True, False, False, True], 5)
    assert measured_spread(np.ones(20, bool), after, np.repeat(np.arange(4), 5)).likeness == 1
    assert measured_spread(np.ones(20, bool), after, np.tile(np.arange(4), 5)).likeness == 0
    assert measured_spread(np.ones(20, bool), after) == Spread(churn=0)


def test_advice_says_what_could_have_been_seen_and_what_it_takes() -> None:
    spread = Spread(churn=0.15)
    text = advice(SampleSize(pictures=300, phrases=50), spread)
    smallest = smallest_loss(SampleSize(pictures=300, phrases=50), spread)
    needed = sample_size(0.05, spread, 6)
    assert smallest is not None
    assert f"a loss of {100 * smallest:.1f} points or more is found with a probability of 80%" in text
    assert f"A loss of 5 points takes {needed.pictures} pairs, 6 of each of {needed.phrases} phrases" in text


def test_advice_for_too_few_phrases_says_so() -> None:
    assert "it takes at least 6 phrases" in advice(SampleSize(pictures=300, phrases=3), Spread(churn=0.1))


def test_few_pairs_are_not_trusted_to_have_seen_all_there_is() -> None:
    few = cautious(Spread(churn=0), SampleSize(pictures=6, phrases=1))
    assert few == Spread(churn=1 / 7, likeness=0.1)
    many = cautious(Spread(churn=0.15, likeness=0.02), SampleSize(pictures=3000, phrases=500))
    assert many.churn == pytest.approx(0.15, abs=3e-4)
    assert many.likeness == 0.02
