"""Matrix products with the same bits on every machine, whatever the order of their sums.

A sum of integer multiples of one power of two needs no rounding while it stays below 2**53 of them: then any
BLAS, with any order, any blocking and with or without fused operations, gives the same float64 numbers.
"""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_MANTISSA: Final = 53  # bits of float64
_STORED: Final = 24  # bits of float32, in which factors are kept
_ZERO: Final = 1 << 20  # an exponent beyond all others: a column of zeros lies on every grid


def on_grid(
    left: Float[Tensor, "d_out rank"], right: Float[Tensor, "rank d_in"]
) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, "rank d_in"]]:
    """Factors near the given ones, in float32, whose product is exact in any order of summation.

    Each column of ``left`` lies on a grid of its own, 2**a, and the row of ``right`` that it meets on
    2**(c − a), so that all products lie on 2**c. With b bits on either side the product moves by at most
    ``rank * 2**-b`` of its largest component; b is 24 up to rank 32, and 22 at rank 512.
    """
    left, right = left.detach().cpu().double(), right.detach().cpu().double()
    if not left.numel() or not right.numel() or is_exact(left.float(), right.float()):
        return left.float(), right.float()
    rank = left.shape[1]
    bits = min(_STORED, (_MANTISSA - math.ceil(math.log2(rank))) // 2)
    tops = _top(left.abs().amax(dim=0)), _top(right.abs().amax(dim=1))
    used = (left != 0).any(dim=0) & (right != 0).any(dim=1)
    if not bool(used.any()):
        return torch.zeros_like(left).float(), torch.zeros_like(right).float()
    grid_left = tops[0] - bits
    product_grid = int((tops[0] + tops[1])[used].max()) - 2 * bits
    grid_right = product_grid - grid_left
    return (
        (_rounded(left, grid_left[None, :]) * used[None, :]).float(),
        (_rounded(right, grid_right[:, None]) * used[:, None]).float(),
    )


def is_exact(left: Float[Tensor, "d_out rank"], right: Float[Tensor, "rank d_in"]) -> bool:
    """Whether the product of two factors is exact in float64 in any order of summation."""
    left, right = left.detach().cpu().double(), right.detach().cpu().double()
    if not left.numel() or not right.numel():
        return True
    largest = left.abs().amax(dim=0) * right.abs().amax(dim=1)
    total = float(largest.sum())
    if not math.isfinite(total):
        return False
    lowest = (_lowest_bit(left).amin(dim=0) + _lowest_bit(right).amin(dim=1))[largest > 0]
    if not len(lowest):
        return True
    grid = int(lowest.min())
    return grid > -1022 and total <= math.ldexp(1.0, _MANTISSA + grid)


def product(
    left: Float[Tensor, "d_out rank"], right: Float[Tensor, "rank d_in"]
) -> Float[Tensor, "d_out d_in"]:
    """``left @ right`` in float64, the same bits everywhere: exact where the factors lie on a grid.

    Other factors take `sliced_product`.
    """
    left, right = left.detach().cpu().double(), right.detach().cpu().double()
    return left @ right if is_exact(left, right) else sliced_product(left, right)


def sliced_product(
    left: Float[Tensor, "d_out rank"], right: Float[Tensor, "rank d_in"]
) -> Float[Tensor, "d_out d_in"]:
    """``left @ right`` in float64 of any two matrices, the same bits everywhere.

    Each row of ``left`` and each column of ``right`` is cut into two slices of 21 to 26 bits below its
    largest value, so that a product of slices is exact; the products are added from the smallest. What lies
    below the second slice is left out, so an element errs by about 2**-40 of its largest summand. A row of
    the product depends on that row of ``left`` alone.

    Source: Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication by using fast
    routines of matrix multiplication and its applications" (Numerical Algorithms 59, 2012).
    """
    left, right = left.detach().cpu().double(), right.detach().cpu().double()
    if not left.numel() or not right.numel():
        return left @ right
    bits = (_MANTISSA - math.ceil(math.log2(max(2, left.shape[1])))) // 2
    high_left, low_left = _slices(left, bits, dim=1)
    high_right, low_right = _slices(right, bits, dim=0)
    return (low_left @ high_right + high_left @ low_right) + high_left @ high_right


def _slices(matrix: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    """The leading ``bits`` bits of each row (``dim`` 1) or column (0), and the ``bits`` bits that follow."""
    top = _top(matrix.abs().amax(dim=dim, keepdim=True))
    high = _rounded(matrix, top - bits)
    low = _rounded(matrix - high, top - 2 * bits)
    return high, low


def _top(values: Tensor) -> Tensor:
    """The exponent e of each value with ``value < 2**e``; 0 for zero."""
    exponents: Tensor = torch.frexp(values).exponent.long()
    return exponents


def _rounded(values: Tensor, exponent: Tensor) -> Tensor:
    """Values rounded to multiples of ``2**exponent``, ties to even; exact in float64."""
    return torch.ldexp(torch.ldexp(values, -exponent).round(), exponent)


def _lowest_bit(values: Tensor) -> Tensor:
    """The exponent of the lowest set bit of each value, `_ZERO` for zeros."""
    mantissa, exponent = torch.frexp(values)
    whole = torch.ldexp(mantissa, torch.tensor(_MANTISSA)).long()
    lowest = (whole & -whole).double()
    place = torch.frexp(lowest).exponent.long() - 1
    return torch.where(values == 0, _ZERO, exponent.long() - _MANTISSA + place)
