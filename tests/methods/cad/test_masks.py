"""Masks combine as sets do; taking a weight away twice is taking it away once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.delta import Places, Rescale
from surgery.errors import MethodError
from surgery.methods.cad.masks import ComponentMask, delta_of, random_mask

SHAPE = (4, 6)
INDEX = st.sets(st.integers(0, 23))


def mask(*index: int, name: str = "unet/w.weight", shape: tuple[int, ...] = SHAPE) -> ComponentMask:
    return ComponentMask({name: Places("elements", shape, torch.tensor(sorted(index)))} if index else {})


def indexes(found: ComponentMask, name: str = "unet/w.weight") -> set[int]:
    places = found.places.get(name)
    assert places is None or places.index is not None
    return set() if places is None or places.index is None else set(places.index.tolist())


@given(INDEX, INDEX)
def test_masks_are_sets(first: set[int], second: set[int]) -> None:
    one, other = mask(*first), mask(*second)
    assert indexes(one | other) == first | second
    assert indexes(one & other) == first & second
    assert indexes(one - other) == first - second
    assert (one | other).count == len(first | second)
    expected = len(first & second) / len(first | second) if first | second else 1.0
    assert one.overlap(other) == pytest.approx(expected)


def test_masks_of_other_weights_stand_side_by_side() -> None:
    both = mask(1, 2) | mask(3, name="unet/v.weight", shape=(5,)) | mask(2, 4)
    assert both.counts() == {"unet/v.weight": 1, "unet/w.weight": 3}


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(MethodError, match=r"shapes \(4, 6\) and \(6, 4\)"):
        mask(1) | mask(1, shape=(6, 4))


def factors(*parts: tuple[ComponentMask, float]) -> dict[int, float]:
    form = delta_of(parts).terms["unet/w.weight"]
    assert isinstance(form, Rescale)
    assert form.places.index is not None
    values = form.factors.expand(len(form.places.index))
    return dict(zip(form.places.index.tolist(), values.tolist(), strict=True))


def test_a_mask_takes_its_strength_of_every_weight() -> None:
    assert factors((mask(1, 5), 1.0)) == {1: 0.0, 5: 0.0}
    assert factors((mask(1, 5), 0.25)) == {1: 0.75, 5: 0.75}


def test_of_overlapping_masks_the_strongest_counts_and_no_weight_is_turned_round() -> None:
    assert factors((mask(1, 2), 1.0), (mask(2, 3), 1.0)) == {1: 0.0, 2: 0.0, 3: 0.0}
    assert factors((mask(1, 2), 0.5), (mask(2, 3), 0.5)) == {1: 0.5, 2: 0.5, 3: 0.5}
    assert factors((mask(1, 2), 0.25), (mask(2, 3), 0.5)) == {1: 0.75, 2: 0.5, 3: 0.5}


def test_one_factor_for_all_is_stored_once() -> None:
    form = delta_of([(mask(1, 5), 1.0)]).terms["unet/w.weight"]
    assert isinstance(form, Rescale)
    assert form.factors.ndim == 0


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_strength_that_is_no_share_is_refused(strength: float) -> None:
    with pytest.raises(MethodError, match="expected 0"):
        delta_of([(mask(1), strength)])


@pytest.mark.parametrize("count", [1, 5, 23])
def test_a_random_mask_has_as_many_elements_of_each_weight(count: int) -> None:
    chosen = mask(*range(count))
    found = random_mask(chosen, torch.Generator().manual_seed(0))
    assert found.counts() == chosen.counts()
    assert indexes(found) != indexes(random_mask(chosen, torch.Generator().manual_seed(1))) or count == 23
    again = random_mask(chosen, torch.Generator().manual_seed(0))
    assert indexes(again) == indexes(found)
