from math import sqrt
from typing import Any

import numpy as np
import pytest

from surgery.evaluate import difference, ratio, share

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def hits(count: int, of: int) -> np.ndarray[Any, Any]:
    return np.arange(of) < count


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Two rows of hits with so many pairs of each kind."""
    kinds = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, first, second, neither], axis=0).astype(bool)
    return kinds[:, 0], kinds[:, 1]


@pytest.mark.parametrize(("count", "of"), [(0, 20), (7, 20), (20, 20), (470, 500), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(count: int, of: int) -> None:
    score = share("x", hits(count, of))
    p = count / of
    # Wilson 1927: the roots of (p - x)² = z² x (1 - x) / n
    middle = (p + Z**2 / (2 * of)) / (1 + Z**2 / of)
    half = Z / (1 + Z**2 / of) * sqrt(p * (1 - p) / of + Z**2 / (4 * of**2))
    assert score.value == pytest.approx(p)
    assert score.low == pytest.approx(max(0, middle - half), abs=1e-9)
    assert score.high == pytest.approx(min(1, middle + half), abs=1e-9)
    assert score.count == of


def test_the_interval_of_a_paired_difference_is_the_analytic_one_for_many_pairs() -> None:
    before, after = pairs(600, 150, 50, 200)
    score = difference("x", before, after)
    # variance of the mean of -1, 0 and 1 with shares 0.15, 0.8 and 0.05
    deviation = sqrt((0.20 - 0.10**2) / 1000)
    assert score.value == pytest.approx(-0.10)
    assert score.low == pytest.approx(-0.10 - Z * deviation, abs=0.002)
    assert score.high == pytest.approx(-0.10 + Z * deviation, abs=0.002)


def test_pairs_that_agree_narrow_the_difference() -> None:
    before, after = pairs(80, 10, 10, 0)
    shuffled = np.random.default_rng(0).permutation(after)
    paired, loose = difference("x", before, after), difference("x", before, shuffled)
    assert paired.high - paired.low <= loose.high - loose.low


def test_the_interval_of_a_ratio_is_the_delta_methods_for_many_pairs() -> None:
    bottom, top = pairs(1600, 200, 80, 120)
    score = ratio("x", top, bottom)
    assert score is not None
    a, b = 0.84, 0.90  # shares of top and bottom
    covariance = 0.80 - a * b
    spread = a * (1 - a) / a**2 + b * (1 - b) / b**2 - 2 * covariance / (a * b)
    deviation = a / b * sqrt(spread / 2000)
    assert score.value == pytest.approx(a / b)
    assert score.low == pytest.approx(a / b - Z * deviation, abs=0.002)
    assert score.high == pytest.approx(a / b + Z * deviation, abs=0.002)


def test_a_ratio_to_nothing_is_no_number() -> None:
    assert ratio("x", hits(3, 10), hits(0, 10)) is None


def test_intervals_keep_their_width_where_no_pair_differs() -> None:
    before, after = pairs(100, 0, 0, 0)
    change, relative = difference("x", before, after), ratio("x", after, before)
    assert change.value == 0
    assert -0.05 < change.low < -0.005
    assert 0.005 < change.high < 0.05
    assert relative is not None
    assert relative.low < 1 < relative.high


def test_equal_data_give_equal_intervals() -> None:
    before, after = pairs(60, 15, 5, 20)
    assert difference("x", before, after) == difference("x", before[::-1], after[::-1])


@pytest.mark.parametrize("kind", ["difference", "ratio"])
def test_intervals_hold_the_true_value_about_as_often_as_they_say(kind: str) -> None:
    rng = np.random.default_rng(0)
    chances = np.array([0.80, 0.08, 0.04, 0.08])  # both, first only, second only, neither
    held = 0
    for seed in range(200):
        before, after = pairs(*rng.multinomial(200, chances))
        score = (
            difference("x", before, after, seed=seed)
            if kind == "difference"
            else ratio("x", after, before, seed=seed)
        )
        truth = 0.84 - 0.88 if kind == "difference" else 0.84 / 0.88
        assert score is not None
        held += score.low <= truth <= score.high
    # 95 % less three standard deviations of 200 tries
    assert held / 200 >= 0.90


def test_pictures_of_few_phrases_say_less_than_as_many_phrases() -> None:
    row = hits(50, 100)
    alike = np.repeat(np.arange(4), 25)  # two phrases always hit, two never do
    apart = np.arange(100)
    by_phrase, by_picture, plain = share("x", row, alike), share("x", row, apart), share("x", row)
    assert (by_phrase.low, by_phrase.high) == (0, 1)
    assert by_picture.high - by_picture.low < 0.25
    assert plain.low >= by_picture.low
    change = difference("x", np.zeros(100, bool), row, alike)
    assert (change.low, change.high) == (0, 1)
    relative = ratio("x", row, np.ones(100, bool), alike)
    assert relative is not None
    assert (relative.low, relative.high) == (0, 1)


def test_the_interval_over_phrases_holds_the_true_share_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 6)
    held = 0
    for _ in range(200):
        chances = rng.beta(0.7, 0.3, size=30)  # each phrase has a chance of its own, 0.7 on average
        score = share("x", rng.random(180) < chances[groups], groups)
        held += score.low <= 0.7 <= score.high
    assert held / 200 >= 0.88


def test_one_phrase_leaves_the_interval_as_it_is() -> None:
    assert share("x", hits(3, 10), np.zeros(10, int)) == share("x", hits(3, 10))
