"""The numbers of one tensor, against numpy in double precision."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery.audit.measure import Measured, coarser, measure
from surgery.audit.sides import sliced

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def measured(before: Tensor, after: Tensor, elements: int = 1 << 20) -> Measured:
    return measure(tuple(before.shape), sliced(before, after, elements))


def pairs() -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    @st.composite
    def draw(pick: st.DrawFn) -> tuple[Tensor, Tensor]:
        shape = pick(st.sampled_from([(7,), (1,), (5, 6), (4, 3, 2, 2), ()]))
        dtype = pick(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(pick(st.integers(0, 1000)))
        before = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        change = torch.randn(shape, generator=generator, dtype=torch.float64)
        where = torch.rand(shape, generator=generator) < pick(st.sampled_from([0.0, 0.2, 1.0]))
        return before, torch.where(where, before.double() + change, before.double()).to(dtype)

    return draw()


@given(pairs(), st.sampled_from([1, 3, 1000]))
def test_sums_are_those_of_numpy(both: tuple[Tensor, Tensor], elements: int) -> None:
    before, after = both
    old, new = before.double().numpy(), after.double().numpy()
    change, matrix = new - old, (new != old).reshape(old.shape[0] if old.ndim else 1, -1)
    found = measured(before, after, elements)
    assert found.changed == np.count_nonzero(matrix)
    assert found.rows_changed == matrix.any(1).sum()
    assert found.columns_changed == matrix.any(0).sum()
    assert found.largest == pytest.approx(np.abs(change).max(), rel=1e-6)
    assert found.norm == pytest.approx(np.sqrt((change**2).sum()), rel=1e-6)
    assert found.base_square == pytest.approx((old**2).sum(), rel=1e-6)
    assert found.product == pytest.approx((change * old).sum(), rel=1e-5, abs=1e-5)
    assert found.touched_square == pytest.approx((old[new != old] ** 2).sum(), rel=1e-6)


def test_the_sign_of_a_zero_is_told_apart_from_other_changes() -> None:
    before, after = torch.tensor([0.0, -0.0, 1.0, 2.0]), torch.tensor([-0.0, -0.0, 1.0, 3.0])
    found = measured(before, after)
    assert (found.changed, found.zero_signs, found.largest) == (2, 1, 1.0)


def test_numbers_that_are_none_are_counted_and_left_out_of_the_sums() -> None:
    before = torch.tensor([1.0, float("inf"), 3.0, 4.0])
    after = torch.tensor([float("nan"), float("inf"), 3.5, 4.0])
    found = measured(before, after)
    assert (found.nonfinite_before, found.nonfinite_after) == (1, 2)
    assert (found.changed, found.largest, found.norm) == (2, 0.5, 0.5)


def test_numbers_that_are_none_are_found_where_nothing_changed() -> None:
    values = torch.ones(200_000, dtype=torch.float16)
    values[150_000] = float("-inf")
    found = measured(values, values.clone())
    assert (found.changed, found.nonfinite_before, found.nonfinite_after) == (0, 1, 1)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_beyond_single_precision_are_summed_in_double(size: float) -> None:
    before = torch.tensor([1.0, 2.0]) * size
    found = measured(before, before * 2)
    assert found.norm == pytest.approx(float(before.double().norm()), rel=1e-6)


def test_small_changes_of_double_precision_are_not_lost() -> None:
    before = torch.ones(3, dtype=torch.float64)
    found = measured(before, before + 1e-12)
    assert (found.changed, found.zero_signs) == (3, 0)
    assert found.largest == pytest.approx(1e-12, rel=1e-3)


def test_the_factor_of_scaled_elements_is_found_and_leaves_nothing_over() -> None:
    before = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[::3] *= 0.25
    found = measured(before, after)
    assert found.factor == pytest.approx(0.25)
    assert found.misfit == pytest.approx(0, abs=1e-6)


def test_a_random_change_has_no_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    before, change = torch.randn(100, 100, generator=generator), torch.randn(100, 100, generator=generator)
    assert (measured(before, before + change).misfit or 0) > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_changes_no_value_of_the_coarser_type(dtype: torch.dtype) -> None:
    before = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    found = measured(before, before.to(dtype))
    assert (found.changed, found.norm) == (0, 0.0)
    assert measured(before.to(dtype), before).changed == 0


def test_a_change_shows_beside_a_cast() -> None:
    before = torch.ones(10)
    after = before.half()
    after[4] = 2.0
    assert measured(before, after).changed == 1


def test_an_infinity_that_a_cast_makes_is_not_the_base_s() -> None:
    found = measured(torch.tensor([1e6, 1.0]), torch.tensor([1e6, 1.0]).half())
    assert (found.nonfinite_before, found.nonfinite_after) == (0, 1)


def test_weights_rounded_through_half_precision_are_half_equal() -> None:
    before = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert measured(before, before.half().float()).half_equal
    assert not measured(before, before + 0.01).half_equal


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (torch.float32, torch.float16, torch.float16),
        (torch.bfloat16, torch.float16, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.float8_e4m3fn, torch.bfloat16, torch.float8_e4m3fn),
    ],
)
def test_the_coarser_type_has_the_shorter_mantissa(
    first: torch.dtype, second: torch.dtype, expected: torch.dtype
) -> None:
    assert coarser(first, second) == expected


def test_blocks_of_part_of_a_row_count_that_row_once() -> None:
    before = torch.zeros(2, 10)
    after = before.clone()
    after[1] = 1.0

    def blocks() -> Iterator[object]:
        yield from sliced(before, after, 3)

    found = measured(before, after, 3)
    assert (found.rows_changed, found.columns_changed, found.changed) == (1, 10, 10)
    assert len(list(blocks())) == 8
