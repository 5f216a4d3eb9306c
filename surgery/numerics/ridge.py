"""Ridge regression with a prior: the closed form behind an edit of many concepts at once."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import NumericsError
from surgery.numerics.cholesky import Factor, factorise

Route: TypeAlias = Literal["woodbury", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What must not change: a positive matrix B, factorised once and used for any number of solves.

    With a ``basis`` U (orthonormal columns), solutions stay in its span and B is a matrix in its coordinates.
    """

    matrix: Float[Tensor, "inner inner"]
    factor: Factor
    basis: Float[Tensor, "d_in inner"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """X = A⁻¹ K diag(a) with A = B + K diag(a) Kᵀ, and how it was found.

    ``response`` is Kᵀ X: entry (e, f) is the share of column f's residual that arrives at column e. Its
    diagonal is the gain, and off the diagonal stands the interference. ``gram`` is Kᵀ B⁻¹ K, how alike the
    columns are to the prior; None where the route does not come past it.
    """

    solved: Float[Tensor, "d_in columns"]
    response: Float[Tensor, "columns columns"]
    gram: Float[Tensor, "columns columns"] | None
    route: Route
    jitter: float
    shrinkage: float
    condition: float


def prior(matrix: Float[Tensor, "d_in d_in"], basis: Float[Tensor, "d_in inner"] | None = None) -> Prior:
    """A prior from a positive matrix, restricted to the span of ``basis`` where one is given.

    Raises:
        NumericsError: as ``factorise``.
    """
    inner = matrix.to(torch.float64)
    if basis is not None:
        inner = basis.T @ inner @ basis
        inner = (inner + inner.T) / 2
    return Prior(matrix=inner, factor=factorise(inner), basis=basis)


def solve(
    known: Prior,
    keys: Float[Tensor, "d_in columns"],
    weights: Float[Tensor, "columns"],
    route: Route | None = None,
) -> Solution:
    """The minimiser's right factor: ΔW = R Xᵀ minimises tr(ΔW B ΔWᵀ) + Σₑ aₑ ‖ΔW kₑ - rₑ‖².

    With fewer columns than inputs the Woodbury identity solves a small system instead:
    A⁻¹ K diag(a) = Y S (I + S Kᵀ Y S)⁻¹ S with Y = B⁻¹ K and S = diag(√a), which also takes weights of 0.

    Args:
        known: The prior B.
        keys: One column for each thing to change.
        weights: Weight of each column, 0 or more.
        route: Which of the two equal ways; the cheaper one when left out.

    Raises:
        NumericsError: when shapes do not fit, a number is not finite, a weight is negative, or the system
            is not positive definite.
    """
    _check(known, keys, weights)
    used: tuple[Factor, ...]
    gram: Tensor | None = None
    keys, roots = keys.to(torch.float64), weights.to(torch.float64).sqrt()
    inner = keys if known.basis is None else known.basis.T @ keys
    if route is None:
        route = "woodbury" if inner.shape[1] < inner.shape[0] else "direct"
    if route == "woodbury":
        whitened = known.factor.solve(inner)
        gram = inner.T @ whitened
        small = torch.eye(len(roots), dtype=torch.float64) + roots[:, None] * gram * roots
        used = (known.factor, factorise((small + small.T) / 2))
        solved = (whitened * roots) @ used[1].solve(torch.diag(roots))
    else:
        scaled = inner * roots
        used = (factorise(known.matrix + scaled @ scaled.T),)
        solved = used[0].solve(scaled * roots)
    response = inner.T @ solved
    if known.basis is not None:
        solved = known.basis @ solved
    return Solution(
        solved=solved,
        response=response,
        gram=gram,
        route=route,
        jitter=max(factor.jitter for factor in used),
        shrinkage=max(factor.shrinkage for factor in used),
        condition=max(factor.condition for factor in used),
    )


def _check(known: Prior, keys: Tensor, weights: Tensor) -> None:
    width = len(known.matrix) if known.basis is None else len(known.basis)
    if keys.ndim != 2 or keys.shape[0] != width or weights.shape != keys.shape[1:]:
        raise NumericsError(
            f"keys have shape {tuple(keys.shape)} and weights {tuple(weights.shape)}; expected ({width}, n) "
            "and (n,). Are the statistics from this layer and model?"
        )
    if not bool(torch.isfinite(keys).all()) or not bool(torch.isfinite(weights).all()):
        raise NumericsError("keys or weights hold NaN or infinity; expected finite numbers.")
    if bool((weights < 0).any()):
        raise NumericsError("a weight is negative; expected 0 or more.")
