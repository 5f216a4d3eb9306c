"""Cholesky factors with a stated fallback: jitter first, then shrinkage, then an error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.linalg import lapack
from torch import Tensor

from surgery.errors import NumericsError
from surgery.numerics.moments import shrink

JITTERS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
SHRINKAGES = (1e-3, 1e-2, 1e-1)
# Below this a float64 factor holds no correct digit.
_SMALLEST_RECIPROCAL = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A = L Lᵀ, and what had to be added to A for it.

    ``jitter`` is relative to the mean of A's diagonal, ``shrinkage`` the share of the identity mixed in; both
    0 when A was factorised as it is. ``condition`` estimates the condition number in the 1-norm.
    """

    lower: Float[Tensor, "width width"]
    jitter: float
    shrinkage: float
    condition: float

    def solve(self, right: Float[Tensor, "width columns"]) -> Float[Tensor, "width columns"]:
        """A⁻¹ times some columns."""
        return torch.cholesky_solve(right, self.lower)


def factorise(matrix: Float[Tensor, "width width"]) -> Factor:
    """The Cholesky factor of a symmetric positive matrix in float64, helped along where it has to be.

    Tried in this order: the matrix itself; a relative jitter of 1e-10, tenfold each time, up to 1e-4;
    shrinkage of 0.1 %, 1 % and 10 %.

    Raises:
        NumericsError: when the matrix is not finite, not square, or none of these is positive definite.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise NumericsError(f"a matrix to factorise has shape {tuple(matrix.shape)}; expected a square.")
    if not bool(torch.isfinite(matrix).all()):
        raise NumericsError(
            "a matrix to factorise holds NaN or infinity; expected finite numbers. "
            "Look for non-finite activations, or compute in float32."
        )
    matrix = matrix.to(torch.float64)
    scale = float(matrix.diagonal().mean())
    for jitter in JITTERS:
        factor = _tried(_raised(matrix, jitter * scale), jitter=jitter)
        if factor is not None:
            return factor
    for share in SHRINKAGES:
        factor = _tried(shrink(matrix, share), shrinkage=share)
        if factor is not None:
            return factor
    raise NumericsError(
        f"a matrix of width {len(matrix)} is not positive definite even with {SHRINKAGES[-1]:.0%} of the "
        "identity mixed in; expected a second moment. Collect the key statistics again."
    )


def _raised(matrix: Tensor, amount: float) -> Tensor:
    if amount == 0.0:
        return matrix
    return matrix + amount * torch.eye(len(matrix), dtype=matrix.dtype)


def _tried(matrix: Tensor, jitter: float = 0.0, shrinkage: float = 0.0) -> Factor | None:
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) != 0:
        return None
    # LAPACK reads columns first: the transpose of our row-major L is its upper factor
    reciprocal, _ = lapack.dpocon(lower.T.numpy(), float(matrix.abs().sum(0).max()), uplo="U")
    if reciprocal < _SMALLEST_RECIPROCAL:
        return None
    return Factor(lower=lower, jitter=jitter, shrinkage=shrinkage, condition=1.0 / float(reciprocal))
