"""Second moments of activations, summed in a stream and kept as a packed triangle."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import NumericsError

# Products of this many rows are summed in float32 before they join the float64 total.
_BLOCK = 4096


class MomentSum:
    """The weighted sum of x xᵀ over rows that arrive in parts.

    Products are formed in float32 in blocks of a few thousand rows and summed up in float64, so that a
    million rows lose no more than one block does (relative error about 1e-6, whatever the count).
    """

    def __init__(self, width: int) -> None:
        self.total: Float[Tensor, "width width"] = torch.zeros(width, width, dtype=torch.float64)
        self.weight = 0.0

    def add(self, rows: Float[Tensor, "count width"], weights: Float[Tensor, "count"] | None = None) -> None:
        """Count some rows, each with its weight (1 when left out)."""
        scaled = rows.float() if weights is None else rows.float() * weights.float().sqrt()[:, None]
        for block in torch.split(scaled, _BLOCK):
            self.total += (block.T @ block).cpu().double()  # in this order: MPS has no float64
        self.weight += float(len(rows) if weights is None else weights.cpu().double().sum())

    def mean(self) -> Float[Tensor, "width width"]:
        """The mean of x xᵀ, symmetric, in float64.

        Raises:
            NumericsError: when nothing was counted, or a row was not finite.
        """
        if self.weight <= 0:
            raise NumericsError("a second moment of no rows; expected at least one. Give more captions.")
        mean = (self.total + self.total.T) / (2 * self.weight)
        if not bool(torch.isfinite(mean).all()):
            raise NumericsError(
                "a second moment is not finite; expected finite activations. "
                "Compute in float32 rather than in half precision."
            )
        return mean


def pack(symmetric: Float[Tensor, "width width"]) -> Float[Tensor, "triangle"]:
    """The lower triangle row by row in float32: half the size of the matrix."""
    rows, columns = torch.tril_indices(*symmetric.shape)
    return symmetric[rows, columns].to(torch.float32)


def unpack(triangle: Float[Tensor, "triangle"]) -> Float[Tensor, "width width"]:
    """The symmetric float64 matrix of a packed triangle.

    Raises:
        NumericsError: when the length is not that of a triangle.
    """
    width = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    if width * (width + 1) // 2 != len(triangle):
        raise NumericsError(f"a packed triangle has {len(triangle)} numbers; expected width·(width + 1)/2.")
    matrix = torch.zeros(width, width, dtype=torch.float64)
    rows, columns = torch.tril_indices(width, width)
    matrix[rows, columns] = triangle.to(torch.float64)
    matrix[columns, rows] = matrix[rows, columns]
    return matrix


def shrink(moment: Float[Tensor, "width width"], share: float) -> Float[Tensor, "width width"]:
    """The moment with a share of the identity of equal trace: (1 - r) C + r tr(C)/width · I."""
    if share == 0.0:
        return moment
    scale = float(moment.diagonal().mean())
    return (1 - share) * moment + share * scale * torch.eye(len(moment), dtype=moment.dtype)
