"""Sums and conversions that round once, to the nearest, ties to even, on every machine.

torch turns float64 into half precision by way of float32, which rounds twice. Here everything narrows through
*rounding to odd*: cut off what does not fit and set the last bit when anything was cut. Rounding the result
to the nearest value of a format at least two bits narrower is then the same as rounding the exact number.

Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
odd" (IEEE Transactions on Computers, 2008), theorem 3; the exact sum is Knuth's TwoSum.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_BITS: Final = {torch.float32: torch.int32, torch.float64: torch.int64}


def round_once(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Tensor:
    """float64 values in another floating type, rounded once."""
    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    nearest = values.to(torch.float32)
    error = values - nearest.double()
    return _to_odd(nearest, error).to(dtype)


def add_once(weight: Tensor, change: Tensor) -> Tensor:
    """The exact ``weight + change``, rounded once to the type of ``weight``.

    An element whose change is zero keeps its bits, also when it is -0.0. Two half-precision numbers may be
    added in float32 first, since its 24 bits are at least 2 × 11 + 2 (Figueroa, "When is double rounding
    innocuous?", SIGNUM Newsletter 30(3), 1995); other types take the exact sum, rounded to odd.
    """
    if {weight.dtype, change.dtype} <= {torch.float16, torch.float32}:
        quick = (weight.float() + change.float()).to(weight.dtype)
        return torch.where(change == 0, weight, quick)
    first, second = weight.double(), change.double()
    total = first + second
    shadow = total - first
    error = (first - (total - shadow)) + (second - shadow)
    if weight.dtype != torch.float64:
        total = _to_odd(total, error)
    return torch.where(change == 0, weight, round_once(total, weight.dtype))


def _to_odd(nearest: Tensor, error: Tensor) -> Tensor:
    """``nearest + error`` rounded to odd, given the nearest value and the exact error it leaves."""
    size = error.abs()
    inexact = (size > 0) & (size < torch.inf)  # neither exact, nor infinite, nor no number
    bits = nearest.view(_BITS[nearest.dtype])
    beyond = inexact & ((error < 0) ^ nearest.signbit())  # the nearest value lies further from zero
    odd = (bits - beyond.to(bits.dtype)) | 1
    return torch.where(inexact, odd, bits).view(nearest.dtype)


def changed_elements(before: Tensor, after: Tensor) -> int:
    """How many elements differ in their bits, so that -0 and +0 count as different."""
    return int((bits_of(before) != bits_of(after)).sum())


def bits_of(tensor: Tensor) -> Tensor:
    """The bits of a floating tensor as integers of the same width."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
