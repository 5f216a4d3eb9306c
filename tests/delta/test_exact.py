"""Products on a grid are exact in any order; other products are the same in any order."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.delta.exact import is_exact, on_grid, product, sliced_product

seeds = st.integers(0, 10_000)
ranks = st.sampled_from([1, 2, 5, 33, 200])


def factors(seed: int, rank: int) -> tuple[Tensor, Tensor]:
    """Factors whose columns differ in size by up to a million."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(0, -6, rank)
    left = torch.randn(7, rank, generator=generator) * sizes
    return left, torch.randn(rank, 11, generator=generator, dtype=torch.float64)


def exactly(left: Tensor, right: Tensor, row: int, column: int) -> Fraction:
    pairs = zip(left[row].tolist(), right[:, column].tolist(), strict=True)
    return sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))


@settings(max_examples=40, deadline=None)
@given(seeds, ranks)
def test_factors_on_the_grid_multiply_without_rounding(seed: int, rank: int) -> None:
    left, right = on_grid(*factors(seed, rank))
    assert is_exact(left, right)
    found = left.double() @ right.double()
    for row, column in ((0, 0), (3, 5), (6, 10)):
        assert Fraction(float(found[row, column])) == exactly(left, right, row, column)
    order = torch.randperm(rank)
    assert torch.equal(left[:, order].double() @ right[order].double(), found)


@settings(max_examples=40, deadline=None)
@given(seeds, ranks)
def test_the_grid_moves_a_product_by_less_than_half_precision_can_tell(seed: int, rank: int) -> None:
    left, right = factors(seed, rank)
    moved = product(*on_grid(left, right)) - left.double() @ right
    largest = (left.double().abs().amax(dim=0) * right.abs().amax(dim=1)).max()
    assert float(moved.abs().max() / largest) <= rank * 2.0**-21


def test_factors_on_the_grid_stay_as_they_are() -> None:
    left, right = on_grid(*factors(1, 5))
    again = on_grid(left, right)
    assert torch.equal(again[0], left)
    assert torch.equal(again[1], right)


@pytest.mark.parametrize("shape", [(3, 0, 4), (0, 2, 4), (3, 2, 0)])
def test_empty_factors_give_an_empty_product(shape: tuple[int, int, int]) -> None:
    rows, rank, columns = shape
    left, right = on_grid(torch.ones(rows, rank), torch.ones(rank, columns))
    assert torch.equal(product(left, right), torch.zeros(rows, columns, dtype=torch.float64))


def test_zero_factors_stay_zero() -> None:
    left, right = on_grid(torch.zeros(3, 2), torch.randn(2, 4))
    assert not left.any()
    assert not product(left, right).any()


@settings(max_examples=40, deadline=None)
@given(seeds, ranks)
def test_any_product_is_the_same_in_any_order_and_by_rows(seed: int, rank: int) -> None:
    left, right = factors(seed, rank)
    found, order = sliced_product(left, right), torch.randperm(rank)
    assert torch.equal(sliced_product(left[:, order], right[order]), found)
    for row in range(len(left)):
        assert torch.equal(sliced_product(left[row : row + 1], right)[0], found[row])


@settings(max_examples=40, deadline=None)
@given(seeds, ranks)
def test_a_sliced_product_errs_by_little(seed: int, rank: int) -> None:
    left, right = factors(seed, rank)
    bound = rank * 2.0**-40 * left.double().abs().amax(dim=1)[:, None] * right.abs().amax(dim=0)
    found = sliced_product(left, right)
    for row, column in ((0, 0), (3, 5), (6, 10)):
        error = Fraction(float(found[row, column])) - exactly(left, right, row, column)
        assert abs(error) <= Fraction(float(bound[row, column]))


def test_a_product_that_needs_more_than_53_bits_is_not_called_exact() -> None:
    left = torch.tensor([[1.0, 2.0**30]])
    assert is_exact(left, torch.tensor([[1.0], [2.0**20]]))
    assert not is_exact(left, torch.tensor([[1.0], [2.0**30]]))
