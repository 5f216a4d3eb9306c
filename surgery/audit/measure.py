"""What differs in one tensor, in numbers, from one pass over its blocks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from surgery.audit.sides import Block, matrix_shape

# Elements worked on at once: few enough for their single-precision copies to stay in the cache, enough for
# threads to work side by side instead of waiting for the interpreter.
_CACHED: Final = 1 << 18
# Bits of the mantissa: of two types the one with fewer is the coarser.
_MANTISSA: Final = {
    torch.float64: 52,
    torch.float32: 23,
    torch.float16: 10,
    torch.bfloat16: 7,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 2,
}
# Types whose differences single precision holds well enough.
_QUICK: Final = {torch.float32, torch.float16, torch.bfloat16}
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Sums of squares in single precision are good between these; beyond, they are made again in double.
_SMALLEST, _LARGEST = 1e-30, 1e30


@dataclass(slots=True)
class Measured:
    """Sums over one tensor.

    Attributes:
        shape: Of the tensor.
        changed: Elements that differ in their bits, in the coarser of the two types.
        zero_signs: Of these, those that differ in the sign of a zero alone.
        largest: The largest absolute change.
        change_square: Σ Δ²
        base_square: Σ W²
        product: Σ Δ W
        touched_square: Σ W² over the changed elements.
        rows_changed: Rows with a changed element.
        nonfinite_before: NaN and infinite elements of the base.
        nonfinite_after: The same, edited.
        half_equal: Equal once rounded to half precision.
        rounded_sides: Whether the base's, and the edited, numbers that differ are rounded to half precision
            themselves: then the other side is what they were rounded from.

    Elements that are not finite on either side are left out of all sums.
    """

    shape: tuple[int, ...]
    changed: int = 0
    zero_signs: int = 0
    largest: float = 0.0
    change_square: float = 0.0
    base_square: float = 0.0
    product: float = 0.0
    touched_square: float = 0.0
    rows_changed: int = 0
    nonfinite_before: int = 0
    nonfinite_after: int = 0
    half_equal: bool = True
    rounded_sides: tuple[bool, bool] = (True, True)
    _columns: Any = field(default=None, repr=False)
    _last_row: int = field(default=-1, repr=False)

    @property
    def norm(self) -> float:
        """‖Δ‖"""
        return math.sqrt(self.change_square)

    @property
    def columns_changed(self) -> int:
        """Columns with a changed element."""
        return 0 if self._columns is None else int(np.count_nonzero(self._columns))

    @property
    def factor(self) -> float | None:
        """The f that fits best where changed elements are f times what they were; None without a base."""
        return 1 + self.product / self.touched_square if self.touched_square > 0 else None

    @property
    def misfit(self) -> float | None:
        """Share of Σ Δ² that ``factor`` leaves over: 1 - (Σ Δ W)² / (Σ Δ² Σ W²) over changed elements."""
        if not (self.touched_square > 0 and self.change_square > 0):
            return None
        return max(0.0, 1 - self.product**2 / (self.change_square * self.touched_square))

    def mark(self, changed: Tensor) -> None:
        """Count elements that are known to change, of a whole tensor whose values are not (bool)."""
        marks = changed.reshape(matrix_shape(self.shape)).numpy()
        self.changed, self.rows_changed = int(marks.sum()), int(marks.any(1).sum())
        self._columns = marks.any(0)

    def add(self, block: Block) -> None:
        """Count one block; the blocks of a tensor come in the order of rows, then columns."""
        before, after = block.before, block.after
        if before.dtype != after.dtype:
            self.nonfinite_before += _nonfinite(before)
            self.nonfinite_after += _nonfinite(after)
            dtype = coarser(before.dtype, after.dtype)
            before, after = before.to(dtype), after.to(dtype)
        one_type = block.before.dtype == block.after.dtype
        step = max(1, _CACHED // max(1, before.shape[1]))
        for start in range(0, before.shape[0], step):
            rows = slice(start, start + step)
            self._count(before[rows], after[rows], (block.row + start, block.column), one_type)

    def _count(self, before: Tensor, after: Tensor, place: tuple[int, int], one_type: bool) -> None:
        differs = _bits(before) != _bits(after)
        changed = int(np.count_nonzero(differs))
        if changed:
            self._count_places(differs, changed, *place)
            if self.half_equal:
                self._round(before, after)
        old = before.float().reshape(-1)
        square = float(torch.dot(old, old))
        quick = before.dtype in _QUICK and square < _LARGEST  # false for NaN too
        if quick and not changed:
            self.base_square += square
            return
        change = after.float().reshape(-1) - old
        change_square = float(torch.dot(change, change))
        if not (quick and _SMALLEST < change_square < _LARGEST):
            self._count_plainly(before, after, differs, one_type)
            return
        self.base_square += square
        self.change_square += change_square
        self.product += float(torch.dot(change, old))
        low, high = torch.aminmax(change)
        self.largest = max(self.largest, float(high), -float(low))
        if changed == change.numel():
            self.touched_square += square
        else:
            touched = old * torch.from_numpy(differs).reshape(-1)
            self.touched_square += float(torch.dot(touched, touched))
        self.zero_signs += changed - int(torch.count_nonzero(change))

    def _round(self, before: Tensor, after: Tensor) -> None:
        """Whether this piece is alike in half precision, and which side is in it already."""
        halves = before.half(), after.half()
        self.half_equal = bool((halves[0] == halves[1]).all())
        sides = zip(self.rounded_sides, halves, (before, after), strict=True)
        first, second = (known and bool((half.to(side) == side).all()) for known, half, side in sides)
        self.rounded_sides = first, second

    def _count_places(self, differs: Any, changed: int, row: int, column: int) -> None:
        """Rows and columns with changes; quick where all elements differ or all columns are known."""
        rows, columns = differs.shape
        in_rows = rows if changed == differs.size else int(np.count_nonzero(differs.any(1)))
        if column and row == self._last_row:  # a further part of a long row
            in_rows = 0
        if in_rows:
            self._last_row = row
        self.changed += changed
        self.rows_changed += in_rows
        if self._columns is None:
            self._columns = np.zeros(matrix_shape(self.shape)[1], dtype=bool)
        seen = self._columns[column : column + columns]
        if not seen.all():
            seen |= np.logical_or.reduce(differs, 0)

    def _count_plainly(self, before: Tensor, after: Tensor, differs: Any, one_type: bool) -> None:
        """The same sums in double precision, without the elements that are not finite."""
        old, new = before.double(), after.double()
        finite = old.isfinite() & new.isfinite()
        if one_type:  # else both were counted before one of them was cast
            self.nonfinite_before += int((~old.isfinite()).sum())
            self.nonfinite_after += int((~new.isfinite()).sum())
        old, new = old[finite], new[finite]
        touched = torch.from_numpy(differs)[finite]
        change = new - old
        self.base_square += float(old.square().sum())
        self.change_square += float(change.square().sum())
        self.product += float((change * old).sum())
        self.touched_square += float(old[touched].square().sum())
        self.zero_signs += int((touched & (change == 0)).sum())
        if change.numel():
            self.largest = max(self.largest, float(change.abs().max()))


def measure(shape: tuple[int, ...], blocks: Iterable[Block]) -> Measured:
    """The sums over all blocks of a tensor.

    Each block's bits are compared first, which is as fast as reading them; numbers are looked at in pieces
    that stay in the cache, their sums made in single precision there and added up in double.
    """
    measured = Measured(shape=shape)
    for block in blocks:
        measured.add(block)
    return measured


def coarser(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """Of two types the one with the shorter mantissa; the first where they are alike."""
    return second if _MANTISSA.get(second, 64) < _MANTISSA.get(first, 64) else first


def _bits(tensor: Tensor) -> Any:
    return tensor.view(_BITS[tensor.element_size()]).numpy()


def _nonfinite(tensor: Tensor) -> int:
    return int((~tensor.float().isfinite()).sum())
