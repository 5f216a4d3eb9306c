"""Factors, and the stated fallback when a matrix has none."""

import pytest
import torch

from surgery.errors import NumericsError
from surgery.numerics import factorise, shrink
from tests.numerics.examples import random_moment, random_rows


def test_a_sound_matrix_is_factorised_as_it_is() -> None:
    matrix = random_moment(8)
    factor = factorise(matrix)
    assert (factor.jitter, factor.shrinkage) == (0.0, 0.0)
    torch.testing.assert_close(factor.lower @ factor.lower.T, matrix)


def test_solving_matches_lu() -> None:
    matrix, right = random_moment(8), random_rows(8, 3)
    torch.testing.assert_close(factorise(matrix).solve(right), torch.linalg.solve(matrix, right))


def test_condition_is_within_a_factor_of_ten_of_the_exact_one() -> None:
    matrix = random_moment(30) + torch.diag(torch.logspace(-3, 3, 30, dtype=torch.float64))
    exact = float(torch.linalg.cond(matrix, 1))
    assert exact / 10 < factorise(matrix).condition <= exact * 1.001


def test_singular_matrices_get_the_smallest_jitter_that_helps() -> None:
    singular = random_moment(12, rows=4)
    factor = factorise(singular)
    assert 1e-10 <= factor.jitter <= 1e-4
    assert factor.shrinkage == 0.0
    raised = singular + factor.jitter * singular.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(factor.lower @ factor.lower.T, raised)


def test_a_slightly_negative_matrix_is_shrunk_and_says_so() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, -5e-3], dtype=torch.float64))
    factor = factorise(matrix)
    assert factor.shrinkage == 1e-2
    torch.testing.assert_close(factor.lower @ factor.lower.T, shrink(matrix, 1e-2))


def test_an_indefinite_matrix_is_an_error() -> None:
    with pytest.raises(NumericsError, match="not positive definite"):
        factorise(torch.diag(torch.tensor([1.0, 1.0, -1.0])))


def test_what_is_not_finite_is_an_error() -> None:
    with pytest.raises(NumericsError, match="NaN or infinity"):
        factorise(torch.full((2, 2), float("nan")))


def test_what_is_not_square_is_an_error() -> None:
    with pytest.raises(NumericsError, match="expected a square"):
        factorise(torch.zeros(2, 3))
