"""Truncation to a rank, and the energy that is kept."""

import pytest
import torch

from surgery.delta import Delta, Dense, LowRank
from surgery.delta.truncate import truncated

MATRIX, KERNEL, BIAS = (f"unet/conv.{name}" for name in ("matrix.weight", "kernel.weight", "bias"))


def test_a_change_of_that_rank_is_kept_whole_and_vectors_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn((6, 2), generator=generator), torch.randn((2, 8), generator=generator)
    delta = Delta({MATRIX: Dense(left @ right), BIAS: Dense(torch.ones(3))})
    found, shares = truncated(delta, 2)
    assert shares == {MATRIX: pytest.approx(1.0), BIAS: 0.0}
    assert set(found.terms) == {MATRIX}
    torch.testing.assert_close(found.materialise(MATRIX), (left @ right).double(), rtol=0, atol=1e-5)


def test_the_share_is_that_of_the_largest_singular_values() -> None:
    kernel = torch.zeros((4, 2, 3, 3))
    kernel[0, 0, 0, 0], kernel[1, 1, 1, 1] = 3.0, 1.0
    found, shares = truncated(Delta({KERNEL: Dense(kernel)}), 1)
    assert shares[KERNEL] == pytest.approx(0.9)
    form = found.terms[KERNEL]
    assert isinstance(form, LowRank)
    assert form.shape == (4, 18)
    gap = found.materialise(KERNEL).view(4, 2, 3, 3) - kernel
    assert float(gap.square().sum()) == pytest.approx(1.0)


def test_a_change_of_nothing_loses_nothing() -> None:
    _, shares = truncated(Delta({MATRIX: Dense(torch.zeros(2, 2)), BIAS: Dense(torch.zeros(2))}), 1)
    assert shares == {MATRIX: 1.0, BIAS: 1.0}
