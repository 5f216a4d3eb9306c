"""Singular values of a change: all of a small one, the largest of a big one, read in pieces."""

import math
from collections.abc import Callable, Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.audit.sides import Block, Sides, matrix_shape
from surgery.report.audit_record import Spectrum

SHOWN: Final = 64
EXACT_SIDE: Final = 1024
# A wide matrix must be held whole for the exact method: 64 MB in single precision.
_EXACT_ELEMENTS: Final = 1 << 24
_OVERSAMPLED: Final = 16
_POWER_STEPS: Final = 2
# Root mean square of rounding to nearest, in units of eps·|w|, for mantissas spread like those of weights:
# an ulp is eps·2^e, 0.72·eps·|w| on average, and its uniform error has the standard deviation 1/√12 of it.
_ROUNDING: Final = 0.72 / math.sqrt(12)
# Above the largest singular value of a random matrix, √m + √n, by the spread of its rows' and columns' sizes.
_MARGIN: Final = 1.5

Pieces = Callable[[], Iterator[tuple[int, Tensor]]]


def spectrum(
    sides: Sides, name: str, shape: tuple[int, ...], *, weight_norm: float, change_norm: float, eps: float
) -> Spectrum:
    """The spectrum of one tensor's change.

    Up to a shorter side of 1024 it is exact: from the Gram matrix in double precision, which is good down to
    1e-8 of the largest value. Beyond, the largest 64 values are found by a randomised method with a fixed
    seed, and the effective rank by an estimate without bias.

    Args:
        sides: Where the change is read from; several times for large tensors.
        name: The tensor.
        shape: Its shape.
        weight_norm: Frobenius norm of the edited weight.
        change_norm: Frobenius norm of the change.
        eps: Of the type it is stored in.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 53, 2011),
    algorithm 4.4 with two power steps.
    """
    rows, columns = matrix_shape(shape)

    def pieces() -> Iterator[tuple[int, Tensor]]:
        return _rows_of_change(sides.blocks(name), columns)

    small = min(rows, columns) <= EXACT_SIDE and (columns <= rows or rows * columns <= _EXACT_ELEMENTS)
    if small:
        values = _exact(pieces, rows, columns)
        fourth = float(values.pow(4).sum())
    else:
        values, fourth = _randomised(pieces, rows, columns)
    # errors of the weight in its type, and of the change in half precision, which patches are rounded to
    error = _ROUNDING * max(eps * weight_norm, torch.finfo(torch.float16).eps * change_norm)
    rounding = _MARGIN * error * (math.sqrt(rows) + math.sqrt(columns)) / math.sqrt(rows * columns)
    square = float(values.square().sum()) if small else change_norm**2
    rank = int((values > rounding).sum())
    return Spectrum(
        values=tuple(float(value) for value in values[:SHOWN]),
        count=min(rows, columns),
        exact=small,
        rank=rank,
        held=min(1.0, float(values[:rank].square().sum()) / square),
        effective_rank=square**2 / fourth,
        rounding=rounding,
        rounding_share=min(1.0, error**2 / square),
    )


def _rows_of_change(
    blocks: Iterator[Block], columns: int
) -> Iterator[tuple[int, Float[Tensor, "rows d_in"]]]:
    """First row and rows of the change in single precision; parts of one long row are put together."""
    parts: list[Tensor] = []
    for block in blocks:
        part = block.after.float() - block.before.float()
        parts.append(torch.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0))
        if block.column + part.shape[1] == columns:
            yield block.row, parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            parts = []


def _exact(pieces: Pieces, rows: int, columns: int) -> Float[Tensor, "count"]:
    if columns <= rows:
        gram = torch.zeros(columns, columns, dtype=torch.float64)
        for _, part in pieces():
            part = part.double()
            gram += part.T @ part
    else:
        whole = torch.cat([part for _, part in pieces()]) if rows else torch.zeros(0, columns)
        gram = torch.zeros(rows, rows, dtype=torch.float64)
        for part in whole.split(max(1, _EXACT_ELEMENTS // 4 // max(1, rows)), dim=1):
            part = part.double()
            gram += part @ part.T
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt().flip(0)


def _randomised(pieces: Pieces, rows: int, columns: int) -> tuple[Float[Tensor, "count"], float]:
    """The largest singular values, and Σσ⁴ = E‖DᵀDω‖² over the random start."""
    width = min(SHOWN + _OVERSAMPLED, rows, columns)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(columns, width, generator=generator)
    basis = _twice(pieces, start)
    fourth = float(basis.double().square().sum()) / width
    for step in range(_POWER_STEPS):
        if step:
            basis = _twice(pieces, basis)
        basis = torch.linalg.qr(basis).Q
    image = torch.cat([part @ basis for _, part in pieces()])
    small: Tensor = torch.linalg.qr(image.double(), mode="r").R
    return torch.linalg.svdvals(small)[:SHOWN], fourth


def _twice(pieces: Pieces, basis: Float[Tensor, "d_in width"]) -> Float[Tensor, "d_in width"]:
    """DᵀD times a basis, in one pass over the rows of D."""
    image = torch.zeros_like(basis)
    for _, part in pieces():
        image += part.T @ (part @ basis)
    return image
