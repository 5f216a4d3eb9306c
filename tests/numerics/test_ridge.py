"""The closed form against the normal equations, and its laws (8.2 of the study)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery.errors import NumericsError
from surgery.numerics import null_space, prior, solve
from surgery.numerics.ridge import Route
from tests.numerics.examples import random_moment, random_rows

WIDTH, OUT = 10, 4
COUNTS = st.integers(1, 2 * WIDTH)
ROUTES: tuple[Route, ...] = ("woodbury", "direct")


def change(
    keys: Tensor, residual: Tensor, moment: Tensor, weights: Tensor, route: Route | None = None
) -> Tensor:
    return residual.T @ solve(prior(moment), keys, weights, route).solved.T


def by_normal_equations(keys: Tensor, residual: Tensor, moment: Tensor, weights: Tensor) -> Tensor:
    """ΔW (B + Σ aₑ kₑ kₑᵀ) = Σ aₑ rₑ kₑᵀ, summed one by one and solved with LU."""
    left, right = moment.clone(), torch.zeros(OUT, WIDTH, dtype=torch.float64)
    for column in range(keys.shape[1]):
        left += weights[column] * torch.outer(keys[:, column], keys[:, column])
        right += weights[column] * torch.outer(residual[column], keys[:, column])
    found: Tensor = torch.linalg.solve(left, right, left=False)
    return found


@given(count=COUNTS, seed=st.integers(0, 99), route=st.sampled_from([None, *ROUTES]))
def test_solution_satisfies_the_normal_equations(count: int, seed: int, route: Route | None) -> None:
    keys, residual = random_rows(count, WIDTH, seed).T, random_rows(count, OUT, seed + 1)
    weights, moment = random_rows(count, 1, seed + 2)[:, 0].abs(), 50 * random_moment(WIDTH, seed)
    expected = by_normal_equations(keys, residual, moment, weights)
    torch.testing.assert_close(
        change(keys, residual, moment, weights, route), expected, rtol=1e-9, atol=1e-12
    )


@given(count=COUNTS, seed=st.integers(0, 99))
def test_woodbury_is_the_direct_solution_to_ten_digits(count: int, seed: int) -> None:
    keys, weights = random_rows(count, WIDTH, seed).T, torch.rand(count, dtype=torch.float64) + 0.1
    known = prior(100 * random_moment(WIDTH, seed))
    small, large = (solve(known, keys, weights, route) for route in ROUTES)
    assert float((small.solved - large.solved).norm()) <= 1e-10 * float(large.solved.norm())
    torch.testing.assert_close(small.response, large.response, rtol=1e-9, atol=1e-12)


def test_the_cheaper_route_is_taken() -> None:
    known = prior(random_moment(WIDTH))
    few, many = random_rows(3, WIDTH).T, random_rows(30, WIDTH).T
    assert solve(known, few, torch.ones(3)).route == "woodbury"
    assert solve(known, many, torch.ones(30)).route == "direct"


def test_no_change_near_the_minimum_is_better() -> None:
    keys, residual, moment = random_rows(3, WIDTH).T, random_rows(3, OUT, 1), random_moment(WIDTH)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def cost(at: Tensor) -> float:
        missed = at @ keys - residual.T
        return float((at @ moment @ at.T).trace() + (weights * missed.square().sum(0)).sum())

    best = change(keys, residual, moment, weights)
    for seed in range(20):
        assert cost(best) < cost(best + 1e-3 * random_rows(OUT, WIDTH, seed))


@pytest.mark.parametrize("route", ROUTES)
def test_vanishing_ridge_reaches_the_target(route: Route) -> None:
    keys, residual = random_rows(4, WIDTH).T, random_rows(4, OUT, 1)
    found = change(keys, residual, 1e-9 * random_moment(WIDTH), torch.ones(4), route)
    torch.testing.assert_close((found @ keys).T, residual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_infinite_ridge_changes_nothing(route: Route) -> None:
    keys, residual = random_rows(4, WIDTH).T, random_rows(4, OUT, 1)
    found = change(keys, residual, 1e15 * random_moment(WIDTH), torch.ones(4), route)
    assert float(found.norm()) < 1e-13


def test_change_is_linear_in_the_residual() -> None:
    keys, moment, weights = random_rows(4, WIDTH).T, random_moment(WIDTH), torch.ones(4)
    one, other = random_rows(4, OUT, 1), random_rows(4, OUT, 2)
    both = change(keys, 2 * one - 3 * other, moment, weights)
    parts = 2 * change(keys, one, moment, weights) - 3 * change(keys, other, moment, weights)
    torch.testing.assert_close(both, parts)


def test_permuting_the_columns_changes_nothing() -> None:
    keys, residual, moment = random_rows(5, WIDTH).T, random_rows(5, OUT, 1), random_moment(WIDTH)
    weights, order = torch.rand(5, dtype=torch.float64) + 0.1, torch.tensor([3, 0, 4, 1, 2])
    shuffled = change(keys[:, order], residual[order], moment, weights[order])
    torch.testing.assert_close(shuffled, change(keys, residual, moment, weights))


def test_one_column_is_the_rank_one_form() -> None:
    # ROME: ΔW = r (B⁻¹ k)ᵀ / (1/a + kᵀ B⁻¹ k)
    keys, residual, moment = random_rows(1, WIDTH).T, random_rows(1, OUT, 1), random_moment(WIDTH)
    direction = torch.linalg.solve(moment, keys[:, 0])
    expected = torch.outer(residual[0], direction) / (1 / 0.7 + keys[:, 0] @ direction)
    torch.testing.assert_close(change(keys, residual, moment, torch.tensor([0.7])), expected)


def test_a_column_of_weight_zero_is_as_if_it_were_not_there() -> None:
    keys, residual, moment = random_rows(3, WIDTH).T, random_rows(3, OUT, 1), random_moment(WIDTH)
    found = change(keys, residual, moment, torch.tensor([1.0, 0.0, 1.0]))
    without = change(keys[:, [0, 2]], residual[[0, 2]], moment, torch.ones(2))
    torch.testing.assert_close(found, without)


def test_response_is_what_arrives_at_the_keys() -> None:
    keys, residual = random_rows(3, WIDTH).T, random_rows(3, OUT, 1)
    solution = solve(prior(random_moment(WIDTH)), keys, torch.ones(3))
    arrived = (residual.T @ solution.solved.T) @ keys
    torch.testing.assert_close(arrived.T, solution.response @ residual)


def test_a_restricted_prior_keeps_the_change_inside_the_basis() -> None:
    moment = random_moment(WIDTH) @ torch.diag(torch.logspace(-4, 0, WIDTH, dtype=torch.float64))
    moment = moment @ moment.T
    basis = null_space(moment, 0.01)
    keys, residual = random_rows(2, WIDTH).T, random_rows(2, OUT, 1)
    found = residual.T @ solve(prior(moment, basis), keys, torch.ones(2)).solved.T
    torch.testing.assert_close(found @ basis @ basis.T, found)
    # inside of the basis it is the plain closed form of the projected keys
    inner = torch.linalg.solve(
        basis.T @ moment @ basis + basis.T @ keys @ keys.T @ basis, basis.T @ keys @ residual
    )
    torch.testing.assert_close(found, (basis @ inner).T)


@pytest.mark.parametrize(
    ("keys", "weights", "message"),
    [
        (torch.zeros(3, 2), torch.ones(2), "expected"),
        (torch.zeros(WIDTH, 2), torch.ones(3), "expected"),
        (torch.full((WIDTH, 2), float("inf")), torch.ones(2), "NaN or infinity"),
        (torch.zeros(WIDTH, 2), torch.tensor([1.0, -1.0]), "negative"),
    ],
)
def test_what_does_not_fit_is_an_error(keys: Tensor, weights: Tensor, message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        solve(prior(random_moment(WIDTH)), keys, weights)
