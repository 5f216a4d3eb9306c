"""Tensors read from their byte range; nothing is mapped, no file stays open.

A mapped file that shrinks while it is read ends the whole program (SIGBUS), and its pages count as memory
used; a read that comes out short is an error like any other. What is large is read in pieces.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.header import Stamp, TensorEntry, stamp_of
from surgery.errors import CheckpointError

CHUNK_BYTES: Final = 1024 * 1024  # stays in the cache of one core
BLOCK_BYTES: Final = 8 * 1024 * 1024


def read_tensor(entry: TensorEntry) -> Tensor:
    """The tensor of one entry, as stored, in memory of its own.

    Raises:
        CheckpointError: when the file cannot be read, or changed since its header was read.
    """
    data = bytearray(entry.end - entry.start)
    with _opened(entry.file, entry.start) as handle:
        _fill(handle, memoryview(data), entry.file, entry.stamp)
    if not data:
        return torch.empty(entry.shape, dtype=entry.dtype)
    stored = torch.frombuffer(data, dtype=entry.dtype)
    if entry.transposed:
        return stored.reshape(entry.shape[::-1]).T.contiguous()
    return stored.reshape(entry.shape)


def read_rows(entry: TensorEntry, start: int, stop: int) -> Tensor:
    """Rows ``[start, stop)`` along the first axis, as stored.

    Raises:
        CheckpointError: when the file cannot be read, or changed since its header was read.
    """
    if entry.transposed:  # the text projection of open_clip alone, a few megabytes
        return read_tensor(entry)[start:stop].contiguous()
    row = prod(entry.shape[1:]) * entry.dtype.itemsize
    first = entry.start + start * row
    shape = (stop - start, *entry.shape[1:])
    return read_tensor(replace(entry, shape=shape, start=first, end=first + (stop - start) * row))


def read_blocks(entry: TensorEntry, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, Tensor]]:
    """The tensor in blocks of whole rows, each with the number of its first row; a scalar is one block.

    Raises:
        CheckpointError: when the file cannot be read, or changed since its header was read.
    """
    if not entry.shape or entry.transposed:
        yield 0, read_tensor(entry)
        return
    rows, row = entry.shape[0], prod(entry.shape[1:]) * entry.dtype.itemsize
    step = max(1, block_bytes // max(1, row))
    for start in range(0, rows, step):
        yield start, read_rows(entry, start, min(rows, start + step))


def read_chunks(path: Path, start: int, end: int, stamp: Stamp | None = None) -> Iterator[memoryview]:
    """The bytes ``[start, end)`` of a file, piece by piece; each is good until the next one is asked for.

    Args:
        path: The file.
        start: First byte.
        end: One past the last byte.
        stamp: The file's stamp when its header was read, to notice that it was changed since.

    Raises:
        CheckpointError: when the file cannot be read, ends too early, or has another stamp.
    """
    buffer = memoryview(bytearray(min(CHUNK_BYTES, end - start)))
    with _opened(path, start) as handle:
        for position in range(start, end, len(buffer) or 1):
            piece = buffer[: end - position]
            _fill(handle, piece, path, stamp)
            yield piece


@contextmanager
def _opened(path: Path, start: int) -> Iterator[FileIO]:
    """The file, ready to be read from ``start``.

    Raises:
        CheckpointError: when the system refuses, also while it is read.
    """
    try:
        with path.open("rb", buffering=0) as handle:
            handle.seek(start)
            yield handle
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path} ({error.strerror or error}); the disk was expected to give it. "
            "Is it still there?"
        ) from error


def _fill(handle: FileIO, buffer: memoryview, path: Path, stamp: Stamp | None) -> None:
    """Fill the buffer from where the file stands; a change of the file is noticed at the latest here.

    Raises:
        CheckpointError: when the file ends before, or has another stamp.
    """
    filled = 0
    while filled < len(buffer):
        count = handle.readinto(buffer[filled:])
        if not count:
            raise _changed(path)
        filled += count
    if stamp is not None and stamp_of(os.fstat(handle.fileno())) != stamp:
        raise _changed(path)


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not what it was when its header was read; it was expected to stay. Something wrote to "
        "it meanwhile: run again when that is done."
    )
