from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from surgery.evaluate import holm, p_value


def pairs(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Hits before and after with so many pairs of each kind."""
    kinds = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, lost, won, neither], axis=0).astype(bool)
    return kinds[:, 0], kinds[:, 1]


def of_phrases(*net: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Hits of ten pictures of each phrase that gained so many."""
    before = np.concatenate([np.arange(10) < max(0, -change) for change in net])
    after = np.concatenate([np.arange(10) < max(0, change) for change in net])
    return before, after, np.repeat(np.arange(len(net)), 10)


def test_a_change_of_pictures_is_mcnemars_exact_test() -> None:
    # the tails of ten fair coins that fall 1 and 9, or more unevenly: 2 (1 + 10) / 1024
    assert p_value(*pairs(50, 9, 1, 40)) == pytest.approx(22 / 1024)
    assert p_value(*pairs(50, 1, 9, 40)) == pytest.approx(22 / 1024)
    for lost, won in ((0, 1), (4, 4), (7, 8), (300, 251)):
        assert p_value(*pairs(9, lost, won, 2)) == pytest.approx(binomtest(lost, lost + won).pvalue)


def test_nothing_changed_is_sure_to_be_chance() -> None:
    assert p_value(*pairs(5, 0, 0, 5)) == 1
    assert p_value(*pairs(5, 0, 0, 5), np.arange(10) // 2) == 1
    assert p_value(*of_phrases(3, -3)) == 1


@pytest.mark.parametrize("net", [(-3, -2, -5, -1, -4, -2), (-3, 2, -5, 0, 1, -4, -2), (7, 7, -1, 0), (2, 1)])
def test_a_change_of_phrases_is_the_share_of_all_swappings_at_least_as_uneven(net: tuple[int, ...]) -> None:
    sums = [
        abs(sum(sign * step for sign, step in zip(signs, net, strict=True)))
        for signs in product((1, -1), repeat=len(net))
    ]
    expected = np.mean([total >= abs(sum(net)) for total in sums])
    assert p_value(*of_phrases(*net)) == pytest.approx(expected)


def test_a_change_of_phrases_is_scipys_permutation_test() -> None:
    rng = np.random.default_rng(0)
    net = [int(step) for step in rng.integers(-6, 3, 11)]
    found = permutation_test(
        (np.array(net), np.zeros(11)),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert p_value(*of_phrases(*net)) == pytest.approx(found.pvalue)


def test_phrases_of_one_picture_each_are_pictures_by_themselves() -> None:
    before, after = pairs(300, 60, 35, 105)
    assert p_value(before, after, np.arange(500)) == pytest.approx(p_value(before, after))


def test_one_phrase_is_judged_by_its_pictures() -> None:
    before, after = pairs(5, 9, 1, 5)
    assert p_value(before, after, np.zeros(20, int)) == p_value(before, after)


def test_a_loss_in_one_phrase_alone_says_less_than_the_same_loss_in_many() -> None:
    assert p_value(*of_phrases(-10, 0, 0, 0, 0, 0, 0, 0, 0, 0)) == 1
    assert p_value(*of_phrases(*[-1] * 10)) == pytest.approx(2 / 1024)


def test_many_phrases_keep_their_small_probabilities() -> None:
    # all of 200 phrases lost one picture: two of 2^200 swappings
    assert p_value(*of_phrases(*[-1] * 200)) == pytest.approx(2.0**-199)


def test_holm_corrects_as_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.30: times 4, 3, 2, 1 gives 0.04, 0.06, 0.06, 0.30
    assert holm([0.03, 0.01, 0.30, 0.02]) == pytest.approx((0.06, 0.04, 0.30, 0.06))
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([0.04]) == (0.04,)
    assert holm([]) == ()


def test_holm_rejects_what_closed_testing_with_bonferronis_bound_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = (rng.random(6) ** 3).round(2)  # small ones, and some alike
        for place, corrected in enumerate(holm(values.tolist())):
            others = [other for other in range(6) if other != place]
            bounds = [
                (1 + count) * min(values[[place, *chosen]])
                for count in range(6)
                for chosen in combinations(others, count)
            ]
            assert corrected == pytest.approx(min(1, max(bounds)))
