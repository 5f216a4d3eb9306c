"""Where a change lies: whole rows, whole columns, single elements, or everywhere."""

from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

from surgery.errors import NumericsError

Kind: TypeAlias = Literal["rows", "columns", "elements", "all"]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Some places of a weight.

    Attributes:
        kind: ``rows`` are slices along the first axis (tokens, output channels), ``columns`` along the
            second (inputs, input channels), ``elements`` flat row-major positions, ``all`` everything.
        shape: Of the weight.
        index: Which rows, columns or elements, ascending, each once; nothing for ``all``.
    """

    kind: Kind
    shape: tuple[int, ...]
    index: Int64[Tensor, " places"] | None = None

    def __post_init__(self) -> None:
        if (self.index is None) != (self.kind == "all"):
            raise NumericsError(f"places of kind {self.kind!r} and an index do not go together.")
        if self.index is None:
            return
        if self.kind == "columns" and len(self.shape) < 2:
            raise NumericsError(f"a weight of shape {self.shape} has no columns; name its elements.")
        index, limit = self.index, self._limit()
        sound = index.dtype == torch.int64 and index.ndim == 1
        if sound and len(index):
            sound = bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < limit
        if not sound:
            raise NumericsError(
                f"the {self.kind} of a weight of shape {self.shape} must be ascending whole numbers below "
                f"{limit}, each once."
            )

    def _limit(self) -> int:
        if self.kind == "elements":
            return prod(self.shape)
        return self.shape[0 if self.kind == "rows" else 1] if self.shape else 0

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of the values that lie there."""
        if self.index is None:
            return self.shape
        count = len(self.index)
        match self.kind:
            case "rows":
                return (count, *self.shape[1:])
            case "columns":
                return (self.shape[0], count, *self.shape[2:])
            case _:
                return (count,)

    def take(self, weight: Tensor) -> Tensor:
        """The values of a weight at these places, in memory of their own."""
        if self.index is None:
            return weight.clone()
        match self.kind:
            case "rows":
                return weight[self.index]
            case "columns":
                return weight[:, self.index]
            case _:
                return weight.reshape(-1)[self.index]

    def put(self, weight: Tensor, values: Tensor) -> Tensor:
        """A copy of a weight with other values at these places."""
        if self.index is None:
            return values.reshape(self.shape).clone()
        changed = weight.clone(memory_format=torch.contiguous_format)
        match self.kind:
            case "rows":
                changed[self.index] = values
            case "columns":
                changed[:, self.index] = values
            case _:
                changed.view(-1)[self.index] = values
        return changed

    def mask(self) -> Tensor:
        """Which elements of the weight these places are (bool, in its shape)."""
        nothing = torch.zeros(self.shape, dtype=torch.bool)
        return self.put(nothing, torch.ones(self.values_shape, dtype=torch.bool))

    def block(self, start: int, stop: int) -> tuple["Places", slice | Tensor]:
        """These places within the rows ``[start, stop)`` of the weight, and which values lie in there.

        The second is an index into the first axis of the values.
        """
        shape = (stop - start, *self.shape[1:])
        if self.kind in ("all", "columns"):
            return Places(self.kind, shape, self.index), slice(start, stop)
        assert self.index is not None
        width = prod(self.shape[1:]) if self.kind == "elements" else 1
        first, last = torch.searchsorted(self.index, torch.tensor([start * width, stop * width])).tolist()
        return Places(self.kind, shape, self.index[first:last] - start * width), slice(first, last)
