"""Tensors kept on the disk while a whole model's worth of them is in use.

They lie in a file without a name in the system's temporary folder (``TMPDIR``), which is gone with the
process however that ends. Nobody else can reach the file, so mapping it is safe, and its pages are the
system's to drop.
"""

import ctypes
import logging
import mmap
import tempfile
from contextlib import suppress
from math import prod
from typing import IO, Final

import torch
from torch import Tensor

from surgery.checkpoint.digest import tensor_bytes

_log = logging.getLogger(__name__)

_SMALL: Final = 1 << 16  # bytes that are not worth a mapping of their own
_TRIM_EVERY: Final = 1 << 26  # bytes kept
_PIECE: Final = 1 << 28  # bytes mapped at once
_ALIGNMENT: Final = 64


class Spool:
    """Takes tensors and gives them back backed by the disk; those stay good after it is gone.

    The file is mapped in a few large pieces, since each takes one of the files that a process may have open.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._piece: mmap.mmap | None = None
        self._start = self._used = self._untrimmed = 0
        self._full = False

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values outside the process's own memory; the tensor itself if it is small, or no room is.

        Args:
            tensor: On the CPU.
        """
        size = prod(tensor.shape) * tensor.element_size()
        if size < _SMALL or self._full:
            return tensor
        try:
            piece, place = self._room(size)
            self._write(tensor_bytes(tensor.detach().contiguous()), self._start + place)
        except OSError as error:
            self._full = True
            _log.info("%s: %s; tensors stay in memory", tempfile.gettempdir(), error.strerror)
            return tensor
        self._untrimmed += size
        if self._untrimmed >= _TRIM_EVERY:
            self._untrimmed = 0
            _trim()
        count = prod(tensor.shape)
        return torch.frombuffer(piece, dtype=tensor.dtype, count=count, offset=place).reshape(tensor.shape)

    def _room(self, size: int) -> tuple[mmap.mmap, int]:
        """A mapped piece of the file with so many free bytes, and where in it they are."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as what maps it
        place = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if self._piece is None or place + size > len(self._piece):
            start = self._start + (0 if self._piece is None else len(self._piece))
            length = -(-max(size, _PIECE) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            self._file.truncate(start + length)
            self._piece = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_WRITE, offset=start)
            self._start, place = start, 0
        self._used = place + size
        return self._piece, place

    def _write(self, data: memoryview, position: int) -> None:
        """Through the file, not the mapping: a full disk is an error here, and a signal there."""
        assert self._file is not None
        self._file.seek(position)
        self._file.write(data)
        self._file.flush()


def _trim() -> None:
    """Hand freed memory back: glibc holds on to blocks of megabytes, which add up to gigabytes of holes."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
