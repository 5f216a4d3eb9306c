"""Products of two half-precision factors that give a change exactly, or to a stated error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.patch.factors import Factors, choose_ranks, pad, select, truncate


def largest_error(factors: Factors, scale: float, change: Tensor) -> float:
    """The largest difference of an element between the product and the change, in float64."""
    product = scale * (factors.up.double() @ factors.down.double())
    difference = (product - change.double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def change_of(rows: int, columns: int, seed: int, zero_rows: int = 0, zero_columns: int = 0) -> Tensor:
    """A random half-precision change, from subnormal to large, with leading rows or columns of zeros."""
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** torch.randint(-24, 6, (rows, columns), generator=generator)
    change = (torch.randn(rows, columns, generator=generator) * scale).half()
    change[:zero_rows] = 0
    change[:, :zero_columns] = 0
    return change


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=50)
@given(
    shape=shapes,
    seed=st.integers(0, 999),
    zeros=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    extra=st.integers(0, 3),
    alpha=st.sampled_from([1, 2, 4]),
)
def test_selected_factors_give_the_change_in_every_arithmetic(
    shape: tuple[int, int], seed: int, zeros: tuple[int, int], extra: int, alpha: int
) -> None:
    change = change_of(*shape, seed, *zeros)
    factors = select(change)
    rank = alpha << extra
    while rank < factors.up.shape[1]:
        rank *= 2
    factors = pad(factors, rank, alpha)
    scale = alpha / rank
    for dtype in (torch.float16, torch.float32, torch.float64):
        up, down = factors.up.to(dtype), factors.down.to(dtype)
        assert torch.equal(scale * (up @ down), change.to(dtype))  # the product, then the scale
        if dtype != torch.float16:  # where a scaled subnormal would lose bits; no loader does it there
            assert torch.equal((scale * up) @ down, change.to(dtype))  # the scale first
        backwards = scale * (up.flip(1) @ down.flip(0))  # summed the other way round
        assert torch.equal(backwards, change.to(dtype))
    assert largest_error(factors, scale, change) == 0


@pytest.mark.parametrize(("zero_rows", "zero_columns", "rank"), [(0, 0, 3), (2, 0, 1), (0, 3, 2), (3, 0, 0)])
def test_only_changed_rows_or_columns_are_carried(zero_rows: int, zero_columns: int, rank: int) -> None:
    change = change_of(3, 5, 1, zero_rows, zero_columns).sign()
    assert select(change).up.shape == (3, rank)


@given(seed=st.integers(0, 999), rank=st.integers(1, 6))
def test_a_truncated_change_errs_by_the_next_singular_value_and_its_factors_rounding(
    seed: int, rank: int
) -> None:
    change = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)).half()
    values = torch.linalg.svdvals(change.double())
    factors = truncate(change, rank)
    # Eckart and Young: the spectral error is the first value left out, and no element errs more. Rounding
    # a factor moves its elements by 2**-11 of themselves; both sides have columns of norm sqrt(value).
    left_out = float(values[rank]) if rank < 6 else 0.0
    rounding = 3 * 2.0**-11 * float(values[:rank].sum())
    assert largest_error(factors, 1.0, change) <= left_out + rounding


def test_a_change_of_low_rank_survives_truncation_at_that_rank() -> None:
    left, right = torch.tensor([[1.0], [2.0], [-0.5]]), torch.tensor([[4.0, 1.0, 0.25, 2.0]])
    change = (left @ right).half()
    assert largest_error(truncate(change, 1), 1.0, change) <= 2 * 2.0**-11 * float(change.abs().max())


def test_equal_ranks_take_that_rank_as_alpha() -> None:
    ranks = choose_ranks({"a": 192, "b": 192, "zeros": 0}, {"a": 960, "b": 960, "zeros": 64})
    assert ranks.alpha == 192
    assert set(ranks.of.values()) == {192}


def test_mixed_ranks_become_powers_of_two_with_alpha_four() -> None:
    ranks = choose_ranks(
        {"small": 3, "large": 100, "zeros": 0}, {"small": 1000, "large": 1000, "zeros": 1000}
    )
    assert ranks.alpha == 4
    assert ranks.of == {"small": 4, "large": 128, "zeros": 4}


def test_an_alpha_that_half_precision_cannot_hold_is_not_taken() -> None:
    assert choose_ranks({"a": 3000}, {"a": 6000}).alpha == 4


def test_padding_scales_the_selector_and_leaves_the_values() -> None:
    change = torch.tensor([[0.1, 0.2, 0.3]]).half()
    padded = pad(select(change), 8, 4)
    assert padded.up.tolist() == [[2.0, 0, 0, 0, 0, 0, 0, 0]]
    assert torch.equal(padded.down[0], change[0])
    columns = torch.tensor([[0.1], [0.2], [0.3]]).half()
    padded = pad(select(columns), 8, 4)
    assert torch.equal(padded.up[:, 0], columns[:, 0])
    assert padded.down[0].item() == 2.0


def test_no_change_has_factors_of_rank_zero() -> None:
    factors = select(torch.zeros(3, 5).half())
    assert (factors.up.shape, factors.down.shape) == ((3, 0), (0, 5))
    assert largest_error(Factors(up=factors.up, down=factors.down), 1.0, torch.zeros(3, 5)) == 0
