"""Every rounding happens once, against exact fractions as the oracle."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from surgery.patch.rounding import add_once, changed_elements, round_once

# precision in bits, exponent of the smallest normal number, of the largest
FORMATS = {torch.float16: (11, -14, 15), torch.bfloat16: (8, -126, 127), torch.float32: (24, -126, 127)}
DTYPES = pytest.mark.parametrize("dtype", FORMATS, ids=str)


def rounded(exact: Fraction, dtype: torch.dtype) -> float:
    """The nearest number of a format, ties to even, by the definition of IEEE 754."""
    precision, smallest, largest = FORMATS[dtype]
    if exact == 0:
        return 0.0
    exponent = smallest
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    spacing = Fraction(2) ** (exponent - precision + 1)
    nearest = round(exact / spacing) * spacing  # Python rounds a Fraction to even
    return math.copysign(math.inf, exact) if abs(nearest) >= Fraction(2) ** (largest + 1) else float(nearest)


numbers = st.floats(-(2.0**17), 2.0**17, allow_nan=False) | st.floats(-1e-6, 1e-6)


@DTYPES
@given(number=numbers)
@example(number=1 + 2**-11)  # half way between two fp16 numbers
@example(number=1 + 2**-11 + 2**-30)  # float32 loses the last bit, and then the tie goes the wrong way
@example(number=1 + 3 * 2**-11 - 2**-30)
@example(number=2**-25 + 2**-60)  # half of the smallest fp16 number, and a little more
@example(number=65519.999999999)  # the last one below infinity
@example(number=65520.0)
@example(number=1e-300)
@example(number=-1e-300)
def test_conversion_is_the_nearest_number(dtype: torch.dtype, number: float) -> None:
    found = round_once(torch.tensor([number], dtype=torch.float64), dtype)
    assert found.dtype == dtype
    assert found.item() == rounded(Fraction(number), dtype)


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=30))
def test_conversion_to_half_precision_agrees_with_numpy(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(values, dtype=np.float64).astype(np.float16)
    found = round_once(torch.tensor(values, dtype=torch.float64), torch.float16)
    assert found.numpy().tobytes() == expected.tobytes()


halves = st.floats(-60000, 60000, width=16) | st.floats(-(2.0**-12), 2.0**-12, width=16)


@DTYPES
@given(weight=st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**-9), 2.0**-9, width=32), change=halves)
@example(weight=2.0**-100, change=1 + 2**-8)  # a bfloat16 tie that only the tiny weight decides
@example(weight=-(2.0**-100), change=1 + 2**-8)
@example(weight=1.0, change=2.0**-24)
def test_a_sum_is_rounded_once(dtype: torch.dtype, weight: float, change: float) -> None:
    first = torch.tensor([weight]).to(dtype)
    found = add_once(first, torch.tensor([change], dtype=torch.float16))
    exact = Fraction(first.item()) + Fraction(change)
    assert found.dtype == dtype
    assert found.item() == (rounded(exact, dtype) if change else first.item())


@given(st.lists(st.tuples(halves, halves), min_size=1, max_size=30))
def test_half_precision_sums_are_those_of_every_loader(pairs: list[tuple[float, float]]) -> None:
    weight, change = torch.tensor(pairs, dtype=torch.float16).T
    found = add_once(weight, change)
    assert torch.equal(found, weight + change)  # added in half precision
    assert torch.equal(found, (weight.float() + change.float()).half())  # added in single, then cast


@DTYPES
def test_no_change_keeps_the_bits_of_a_negative_zero(dtype: torch.dtype) -> None:
    weight = torch.tensor([-0.0, -0.0, 1.0], dtype=dtype)
    changed = add_once(weight, torch.tensor([0.0, -0.0, 0.0], dtype=torch.float16))
    assert changed_elements(weight, changed) == 0


def test_changed_elements_counts_bits_and_so_sees_the_sign_of_zero() -> None:
    before = torch.tensor([0.0, 1.0, 2.0]).half()
    assert changed_elements(before, torch.tensor([-0.0, 1.0, 2.5]).half()) == 2
