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


class Spool:
    """Takes tensors and gives them back backed by the disk; those stay good after it is gone."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._full = False
        self._untrimmed = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values outside the process's own memory; the tensor itself if it is small, or no room is.

        Args:
            tensor: On the CPU.
        """
        size = prod(tensor.shape) * tensor.element_size()
        if size < _SMALL or self._full:
            return tensor
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as what maps it
            start = -(-self._file.seek(0, 2) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            self._file.seek(start)
            self._file.write(tensor_bytes(tensor.detach().contiguous()))
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=start)
        except OSError as error:
            self._full = True
            _log.info("%s has no room (%s); tensors stay in memory", tempfile.gettempdir(), error.strerror)
            return tensor
        self._untrimmed += size
        if self._untrimmed >= _TRIM_EVERY:
            self._untrimmed = 0
            _trim()
        return torch.frombuffer(mapped, dtype=tensor.dtype).reshape(tensor.shape)


def _trim() -> None:
    """Hand freed memory back: glibc holds on to blocks of megabytes, which add up to gigabytes of holes."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
