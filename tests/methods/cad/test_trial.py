"""Growing a mask to what is wanted, and what that costs."""

from collections.abc import Callable

import pytest

from surgery.methods.cad.paths import sampler_rows
from surgery.methods.cad.settings import AttributionSettings
from surgery.methods.cad.trial import FIRST, growing_rows, ratios_tried, smallest, trial_scheme

MOST = 0.1


def counted(left: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    asked: list[float] = []

    def told(ratio: float) -> float:
        asked.append(ratio)
        return left(ratio)

    return told, asked


@pytest.mark.parametrize("needed", [2e-5, 3e-4, 0.01, 0.07])
def test_the_smallest_ratio_that_leaves_little_enough_is_found_within_a_factor(needed: float) -> None:
    left, asked = counted(lambda ratio: 1 - (ratio / needed) ** 0.5)
    found = smallest(left, 0.0, MOST)
    assert needed <= found <= 1.7 * needed
    assert len(asked) <= ratios_tried(MOST)
    assert max(asked) <= MOST


def test_the_first_ratio_may_do() -> None:
    assert smallest(lambda ratio: -1.0, 0.0, MOST) == FIRST


def test_where_none_does_the_one_that_leaves_least_is_taken() -> None:
    # past its best a mask wrecks more than it erases
    left, asked = counted(lambda ratio: 0.2 if FIRST < ratio < 5e-5 else 0.6)
    assert smallest(left, 0.0, MOST) == 4 * FIRST
    assert max(asked) == MOST


def test_growing_has_paths_of_its_own_and_a_pass_for_each_ratio_and_the_unedited_model() -> None:
    scheme = trial_scheme(AttributionSettings())
    assert ratios_tried(MOST) == 10
    rows = sampler_rows(scheme) + 11 * scheme.pairs
    assert growing_rows(AttributionSettings(), 3, MOST) == 3 * rows
