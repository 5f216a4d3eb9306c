"""Growing a mask to what is wanted, and how much of a concept's direction is left."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from surgery.methods.cad.control import HeldOut, left_of
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import Pairs
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


def test_left_is_the_part_along_the_concept_s_direction(pairs: Pairs) -> None:
    way = torch.randn(pairs.target.shape, generator=torch.Generator().manual_seed(0))
    usual = pairs.target + way
    across = torch.randn(way.shape, generator=torch.Generator().manual_seed(1))
    across -= way * (across * way).sum() / way.square().sum()
    assert left_of(pairs, usual, usual) == pytest.approx(1)
    assert left_of(pairs, usual, pairs.target) == pytest.approx(0)
    assert left_of(pairs, usual, pairs.target - 0.5 * way) == pytest.approx(-0.5)
    assert left_of(pairs, usual, pairs.target + 9 * across) == pytest.approx(0, abs=1e-6)


def test_an_empty_mask_leaves_all(models: Any, pairs: Pairs) -> None:
    assert HeldOut(models, pairs).left(ComponentMask(), 1.0) == pytest.approx(1)


def test_growing_draws_paths_only_where_no_trial_does() -> None:
    scheme = AttributionSettings()
    apart, shared = (growing_rows(scheme, 3, MOST, tried=tried) for tried in (False, True))
    assert shared == 3 * ratios_tried(MOST) * trial_scheme(scheme).pairs
    assert apart > shared
