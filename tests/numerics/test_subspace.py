"""Null spaces and low-rank products."""

import pytest
import torch

from surgery.errors import NumericsError
from surgery.numerics import break_even_rank, join_terms, null_space
from tests.numerics.examples import random_moment, random_rows


def test_null_space_of_a_singular_moment_is_its_kernel() -> None:
    moment = random_moment(8, rows=3)
    basis = null_space(moment, 1e-6)
    assert basis.shape == (8, 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    assert float((moment @ basis).norm()) < 1e-12


def test_threshold_is_relative_to_the_mean_eigenvalue() -> None:
    moment = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert null_space(moment, 0.6).shape == (3, 1)
    assert null_space(1000 * moment, 0.6).shape == (3, 1)


def test_no_free_direction_is_an_error() -> None:
    with pytest.raises(NumericsError, match="Raise the threshold"):
        null_space(torch.eye(3), 0.5)


def test_break_even_rank_is_the_largest_at_which_factors_are_no_bigger() -> None:
    rank = break_even_rank(768, 3072)
    assert rank == 614
    assert rank * (768 + 3072) <= 768 * 3072 < (rank + 1) * (768 + 3072)


def test_joined_terms_multiply_to_the_sum() -> None:
    terms = [(random_rows(4, rank, rank), random_rows(rank, 6, rank + 9)) for rank in (1, 2, 3)]
    left, right = join_terms(terms)
    torch.testing.assert_close(left @ right, sum(one @ other for one, other in terms))
