"""One list gives every smaller mask: the same that choosing afresh from the scores gives."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from surgery.errors import MethodError
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.ranked import Ranked, rank, ranked_from
from surgery.methods.cad.settings import Rounding, Rule

SHAPES = {"unet/a.weight": (7, 40), "unet/b.weight": (5, 3, 3, 3)}


def scores() -> Iterator[tuple[str, Tensor]]:
    for number, (name, shape) in enumerate(SHAPES.items()):
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        yield name, (drawn * 4).round() / 4  # with ties, and zeros


def indexes(mask: ComponentMask) -> dict[str, list[int]]:
    return {name: places.index.tolist() for name, places in mask.places.items() if places.index is not None}


RULES: list[Rule] = ["row", "tensor", "global"]
ROUNDINGS: list[Rounding] = ["carry", "floor", "ceil"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.25])
def test_a_smaller_mask_from_the_list_is_the_one_chosen_afresh(
    rule: Rule, rounding: Rounding, ratio: float
) -> None:
    listed = rank(scores, rule, 0.3).mask(ratio, rounding)
    afresh = rank(scores, rule, ratio).mask(ratio, rounding)
    assert indexes(listed) == indexes(afresh)


def test_the_mask_of_a_row_holds_its_largest_scores() -> None:
    mask = rank(scores, "row", 0.1).mask(0.1, "floor")
    table = dict(scores())["unet/a.weight"]
    places = indexes(mask)["unet/a.weight"]
    for row in range(7):
        chosen = [place % 40 for place in places if place // 40 == row]
        order = sorted(range(40), key=lambda column: (-float(table[row, column]), column))
        assert chosen == sorted(order[:4])


def test_scores_that_speak_against_the_concept_are_never_taken() -> None:
    for zeros in (False, True):
        mask = rank(scores, "tensor", 0.9, zeros=zeros).mask(0.9)
        for name, places in mask.places.items():
            taken = places.take(dict(scores())[name])
            assert bool((taken >= 0).all() if zeros else (taken > 0).all())


def test_a_list_comes_back_from_its_tensors() -> None:
    ranked = rank(scores, "row", 0.2)
    again = ranked_from(ranked.as_tensors(), ranked.as_data())
    assert isinstance(again, Ranked)
    assert indexes(again.mask(0.15)) == indexes(ranked.mask(0.15))


def test_more_than_was_ranked_is_refused() -> None:
    with pytest.raises(MethodError, match=r"the ratio is 0\.3; the list holds the largest 0\.2"):
        rank(scores, "row", 0.2).mask(0.3)
