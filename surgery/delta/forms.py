"""The forms a weight change can take, and what can be asked of each without knowing the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import NumericsError

_BLOCK_ELEMENTS = 1 << 16  # half a megabyte of float64, which stays in the cache of one core


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A change given element by element, in the shape of the weight."""

    values: Float[Tensor, "*shape"]

    def __post_init__(self) -> None:
        _refuse_integers(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change."""
        return tuple(self.values.shape)


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The change ``left @ right``; for a convolution ``d_in`` runs over inputs and kernel positions."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]

    def __post_init__(self) -> None:
        _refuse_integers(self.left)
        _refuse_integers(self.right)
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise NumericsError(
                f"the factors have shapes {tuple(self.left.shape)} and {tuple(self.right.shape)}; "
                "(d_out, rank) and (rank, d_in) were expected."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change."""
        return self.left.shape[0], self.right.shape[1]


Form: TypeAlias = Dense | LowRank


def materialise(form: Form) -> Float[Tensor, "*shape"]:
    """The change in float64, on the CPU, the same to the last bit on every machine.

    A low-rank product is summed over the rank in ascending order, each product and each sum rounded on its
    own; a BLAS would choose its own order. Done in blocks of rows that stay in the cache.
    """
    if isinstance(form, Dense):
        return form.values.detach().to(device="cpu", dtype=torch.float64)
    left, right = (
        factor.detach().to(device="cpu", dtype=torch.float64) for factor in (form.left, form.right)
    )
    product = torch.zeros(form.shape, dtype=torch.float64)
    rows = max(1, _BLOCK_ELEMENTS // max(1, form.shape[1]))
    for start in range(0, form.shape[0], rows):
        block = product[start : start + rows]
        for column in range(left.shape[1]):
            block += left[start : start + rows, column, None] * right[column]
    return product


def scaled(form: Form, strength: float) -> Form:
    """``strength`` times the change, in float64 so that nothing is lost."""
    if isinstance(form, Dense):
        return Dense(form.values.double() * strength)
    return LowRank(form.left.double() * strength, form.right)


def added(first: Form, second: Form) -> Form:
    """The sum: low ranks side by side, anything else element by element in float64.

    Raises:
        NumericsError: when the shapes differ.
    """
    if first.shape != second.shape:
        raise NumericsError(
            f"changes of shapes {first.shape} and {second.shape} cannot be added; both must be of one weight."
        )
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        left = torch.cat([first.left, second.left], dim=1)
        return LowRank(left, torch.cat([first.right, second.right]))
    return Dense(materialise(first) + materialise(second))


def mapped(form: Form, change: Callable[[Tensor], Tensor]) -> Form:
    """The form with ``change`` applied to each tensor it holds."""
    if isinstance(form, Dense):
        return Dense(change(form.values))
    return LowRank(change(form.left), change(form.right))


def singular_values(form: Form) -> Float[Tensor, " rank"]:
    """Singular values of the change as a matrix ``(d_out, rest)``, descending, in float64.

    A low-rank change is never materialised: with ``left = Q S`` and ``right.T = P R`` they are those of
    the small ``S @ R.T``.
    """
    if isinstance(form, Dense):
        matrix = materialise(form)
        core = matrix.reshape(matrix.shape[0], -1) if matrix.ndim > 1 else matrix[:, None]
    else:
        small_left = torch.linalg.qr(form.left.detach().cpu().double(), mode="r").R
        small_right = torch.linalg.qr(form.right.detach().cpu().double().T, mode="r").R
        core = small_left @ small_right.T
    values: Tensor = torch.linalg.svdvals(core)
    return values


def _refuse_integers(tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise NumericsError(f"a change has the type {tensor.dtype}; floating point was expected.")
