"""How much of a concept's direction is left with a mask, and how that is told."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.errors import MethodError
from surgery.methods.cad.control import Control, HeldOut, left_of, percent
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import Measured, Pairs

BEFORE = Measured(values=torch.ones(2), timesteps=torch.ones(2).long(), sample=torch.arange(2))


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


def test_predictions_that_are_no_numbers_are_refused(models: Any, pairs: Pairs) -> None:
    held_out = HeldOut(models, pairs)
    with pytest.raises(MethodError, match="NaN or infinite"):
        HeldOut(models, replace(pairs, target=pairs.target / 0)).left(ComponentMask(), 1.0)
    assert held_out.left(ComponentMask(), 1.0) == pytest.approx(1)


def test_the_line_says_what_is_left_or_how_the_measure_changes() -> None:
    less = replace(BEFORE, values=BEFORE.values * 0.5)
    erased = Control(before=BEFORE, after=less, random=(BEFORE,), left=-0.004, random_left=(0.98,))
    assert erased.line() == "leaves 0 % of its direction, random ones 98 %"
    assert Control(before=BEFORE, after=less, random=(BEFORE,)).line() == (
        "changes its measure by -50 %, random ones by +0 %"
    )


@pytest.mark.parametrize(("share", "text"), [(-0.004, "0 %"), (0.126, "13 %"), (-0.2, "-20 %")])
def test_percents_are_whole_and_never_less_than_nothing_by_rounding(share: float, text: str) -> None:
    assert percent(share) == text
