"""The two sides of an audit: which tensors each has, and their values in blocks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.reader import read_rows, read_tensor
from surgery.errors import CheckpointError
from surgery.record import JSON

BLOCK_ELEMENTS: Final = 1 << 20  # read at a time on each side: 2 to 4 MB

Presence = Literal["shared", "added", "missing", "reshaped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What the headers say of one tensor; ``dtypes`` is None on the side that lacks it."""

    presence: Presence
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype | None, torch.dtype | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of one tensor as a matrix ``(d_out, rest)``, on both sides, from ``row`` and ``column`` on."""

    row: int
    column: int
    before: Tensor
    after: Tensor


class Sides(Protocol):
    """A model before and after."""

    @property
    def has_base(self) -> bool:
        """Whether ``before`` is the base's weight; else it is zero, and ``after`` the change."""

    @property
    def tensors(self) -> Mapping[str, Listed]:
        """Every tensor of either side, sorted by name."""

    @property
    def facts(self) -> Mapping[str, Mapping[str, JSON]]:
        """What each side is, for the record."""

    def blocks(self, name: str, elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
        """A shared tensor, piece by piece; nothing where both sides are known to be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPair:
    """Two checkpoints, in any layouts."""

    base: Checkpoint
    edited: Checkpoint

    @property
    def has_base(self) -> bool:
        """Always."""
        return True

    @property
    def tensors(self) -> Mapping[str, Listed]:
        """Every tensor of either checkpoint."""
        names = sorted(self.base.tensors.keys() | self.edited.tensors.keys())
        return {name: _listed(self.base.tensors.get(name), self.edited.tensors.get(name)) for name in names}

    @property
    def facts(self) -> Mapping[str, Mapping[str, JSON]]:
        """Both checkpoints' paths, layouts and the texts in their headers."""
        return {"base": checkpoint_facts(self.base), "edited": checkpoint_facts(self.edited)}

    def blocks(self, name: str, elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
        """A tensor that both have in one shape."""
        before, after = self.base.tensors[name], self.edited.tensors[name]
        if before.transposed or after.transposed:
            yield from sliced(read_tensor(before), read_tensor(after), elements)
            return
        rows, columns = matrix_shape(before.shape)
        for row, stop, column, end in pieces(rows, columns, elements):
            part = (row, stop, column, end)
            yield Block(row=row, column=column, before=_piece(before, *part), after=_piece(after, *part))


def refuse_strangers(base: Checkpoint, edited: Checkpoint) -> None:
    """Refuse two models of different families or sizes.

    Raises:
        CheckpointError: saying what each is.
    """
    shared = base.tensors.keys() & edited.tensors.keys()
    alike = [name for name in shared if base.tensors[name].shape == edited.tensors[name].shape]
    if base.architecture == edited.architecture and len(alike) > len(shared) / 2:
        return
    raise CheckpointError(
        f"{base.path} is {_family(base)}; {edited.path} is {_family(edited)}. Two checkpoints of one family "
        f"and size were expected ({len(alike)} tensors have one name and one shape). Name the base that "
        "the edit was made of."
    )


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, JSON]:
    """What a checkpoint says of itself, without reading a tensor."""
    texts = {
        file.name: dict(header.metadata) for file, header in checkpoint.headers.items() if header.metadata
    }
    return {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "architecture": checkpoint.architecture,
        "tensors": len(checkpoint.tensors),
        "bytes": sum(entry.end - entry.start for entry in checkpoint.tensors.values()),
        "metadata": texts,
    }


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix ``(d_out, rest)``; a vector is one column."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def pieces(rows: int, columns: int, elements: int) -> Iterator[tuple[int, int, int, int]]:
    """Row and column ranges of at most ``elements`` each: whole rows, or parts of one where it is longer."""
    if columns > elements:
        for row in range(rows):
            for column in range(0, columns, elements):
                yield row, row + 1, column, min(columns, column + elements)
        return
    step = max(1, elements // max(1, columns))
    for row in range(0, rows, step):
        yield row, min(rows, row + step), 0, columns


def sliced(before: Tensor, after: Tensor, elements: int) -> Iterator[Block]:
    """Two whole tensors in blocks."""
    rows, columns = matrix_shape(tuple(before.shape))
    left, right = before.reshape(rows, columns), after.reshape(rows, columns)
    for row, stop, column, end in pieces(rows, columns, elements):
        part = (slice(row, stop), slice(column, end))
        yield Block(row=row, column=column, before=left[part].contiguous(), after=right[part].contiguous())


def _piece(entry: TensorEntry, row: int, stop: int, column: int, end: int) -> Tensor:
    rows, columns = matrix_shape(entry.shape)
    if end - column == columns:
        whole = replace(entry, shape=(rows, columns))
        return read_rows(whole, row, stop)
    first = entry.start + row * columns * entry.dtype.itemsize
    line = replace(entry, shape=(columns,), start=first, end=first + columns * entry.dtype.itemsize)
    return read_rows(line, column, end)[None]


def _listed(before: TensorEntry | None, after: TensorEntry | None) -> Listed:
    known = before or after
    assert known is not None  # a name comes from one of the two
    presence: Presence = "shared"
    if before is None:
        presence = "added"
    elif after is None:
        presence = "missing"
    elif before.shape != after.shape:
        presence = "reshaped"
    dtypes = (before.dtype if before else None, after.dtype if after else None)
    return Listed(presence=presence, shape=known.shape, dtypes=dtypes)


def _family(checkpoint: Checkpoint) -> str:
    weights = sum(prod(entry.shape) for entry in checkpoint.tensors.values())
    return f"{checkpoint.architecture} of {len(checkpoint.tensors)} tensors and {weights:,} weights"
