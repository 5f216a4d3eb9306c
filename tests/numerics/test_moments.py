"""Second moments summed in a stream against plain sums in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import NumericsError
from surgery.numerics import MomentSum, pack, shrink, unpack
from tests.numerics.examples import random_moment, random_rows


def test_mean_is_the_plain_second_moment() -> None:
    rows = random_rows(5000, 6)
    total = MomentSum(6)
    for part in torch.split(rows, 1234):
        total.add(part.float())
    torch.testing.assert_close(total.mean(), rows.T @ rows / 5000, rtol=1e-6, atol=1e-6)


def test_a_million_tiny_rows_beside_a_large_one_are_not_lost() -> None:
    # in float32 alone 1e4 + 1e-5 stays 1e4, however often it is added
    total = MomentSum(1)
    total.add(torch.full((1, 1), 100.0))
    for _ in range(100):
        total.add(torch.full((10_000, 1), 10**-2.5))
    expected = (1e4 + 1_000_000 * 1e-5) / 1_000_001
    assert float(total.mean()) == pytest.approx(expected, rel=1e-6)


def test_weights_count_like_repetitions() -> None:
    rows = random_rows(3, 4).float()
    weighted, repeated = MomentSum(4), MomentSum(4)
    weighted.add(rows, torch.tensor([1.0, 2.0, 3.0]))
    repeated.add(rows[[0, 1, 1, 2, 2, 2]])
    torch.testing.assert_close(weighted.mean(), repeated.mean(), rtol=1e-6, atol=1e-7)


def test_mean_is_symmetric_to_the_bit() -> None:
    total = MomentSum(7)
    total.add(random_rows(100, 7).float())
    assert torch.equal(total.mean(), total.mean().T)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(NumericsError, match="no rows"):
        MomentSum(3).mean()


def test_a_row_that_is_not_finite_is_an_error() -> None:
    total = MomentSum(2)
    total.add(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(NumericsError, match="not finite"):
        total.mean()


@given(width=st.integers(1, 12), seed=st.integers(0, 99))
def test_packing_keeps_a_float32_matrix_to_the_bit(width: int, seed: int) -> None:
    moment = random_moment(width, seed).float().double()
    moment = moment.tril() + moment.tril(-1).T
    assert torch.equal(unpack(pack(moment)), moment)


def test_packed_is_the_lower_triangle_row_by_row() -> None:
    assert pack(torch.tensor([[1.0, 9.0], [2.0, 3.0]])).tolist() == [1.0, 2.0, 3.0]


def test_unpacking_refuses_a_length_that_is_no_triangle() -> None:
    with pytest.raises(NumericsError, match="has 4 numbers"):
        unpack(torch.zeros(4))


@given(share=st.floats(0, 1))
def test_shrinking_keeps_the_trace(share: float) -> None:
    moment = random_moment(5)
    assert float(shrink(moment, share).trace()) == pytest.approx(float(moment.trace()))


def test_shrinking_wholly_gives_the_scaled_identity() -> None:
    moment = random_moment(3)
    torch.testing.assert_close(shrink(moment, 1.0), torch.eye(3, dtype=torch.float64) * moment.trace() / 3)
