"""Subspaces of a second moment, and low-rank products."""

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import NumericsError


def null_space(moment: Float[Tensor, "d_in d_in"], threshold: float) -> Float[Tensor, "d_in free"]:
    """Orthonormal columns that span the directions in which a second moment is nearly empty.

    Args:
        moment: Symmetric, positive.
        threshold: Eigenvalues below this share of the mean eigenvalue count as empty (relative, so that it
            means the same for any scale of activations).

    Raises:
        NumericsError: when no direction is free.

    Source: AlphaEdit (Fang et al. 2024), where the threshold is an absolute 0.02.
    """
    values, vectors = torch.linalg.eigh(moment.to(torch.float64))
    free = values < threshold * values.mean()
    if not bool(free.any()):
        raise NumericsError(
            f"no eigenvalue lies below {threshold:g} of the mean (the smallest is "
            f"{float(values[0] / values.mean()):.2g}); expected some free directions. Raise the threshold."
        )
    basis: Tensor = vectors[:, free]
    return basis


def break_even_rank(rows: int, columns: int) -> int:
    """The largest rank at which two factors are no bigger than their product as one matrix."""
    return rows * columns // (rows + columns)


def join_terms(
    terms: list[tuple[Float[Tensor, "d_out rank"], Float[Tensor, "rank d_in"]]],
) -> tuple[Float[Tensor, "d_out ranks"], Float[Tensor, "ranks d_in"]]:
    """One pair of factors whose product is the sum of all products; nothing is rounded."""
    return torch.cat([left for left, _ in terms], 1), torch.cat([right for _, right in terms], 0)
