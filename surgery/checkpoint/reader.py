"""Tensors read from their byte range, each into memory of its own; nothing is mapped, no file stays open."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.header import TensorEntry
from surgery.errors import CheckpointError

CHUNK_BYTES: Final = 4 * 1024 * 1024


def read_tensor(entry: TensorEntry) -> Tensor:
    """The tensor of one entry, as stored.

    Raises:
        CheckpointError: when the file changed since its header was read.
    """
    data = bytearray(entry.end - entry.start)
    try:
        with entry.file.open("rb") as handle:
            handle.seek(entry.start)
            count = handle.readinto(data)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.file}: {error.strerror}") from error
    if count != len(data):
        raise _cut_off(entry.file)
    if not data:
        return torch.empty(entry.shape, dtype=entry.dtype)
    stored = torch.frombuffer(data, dtype=entry.dtype)
    if entry.transposed:
        return stored.reshape(entry.shape[::-1]).T.contiguous()
    return stored.reshape(entry.shape)


def read_chunks(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The bytes ``[start, end)`` of a file, piece by piece.

    Raises:
        CheckpointError: when the file cannot be read or ends too early.
    """
    try:
        with path.open("rb") as handle:
            handle.seek(start)
            while start < end:
                chunk = handle.read(min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise _cut_off(path)
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _cut_off(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} ends earlier than its header says; it changed while it was read. Run again."
    )
