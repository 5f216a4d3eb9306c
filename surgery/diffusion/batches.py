"""Work in batches that halve themselves when memory runs out."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from surgery.errors import SurgeryError

_log = logging.getLogger(__name__)

T = TypeVar("T")


def in_batches(count: int, batch: int, work: Callable[[slice], T]) -> list[T]:
    """Results of ``work`` on consecutive slices of at most ``batch`` out of ``count`` items.

    When a slice runs out of memory it is tried again at half the size, which then holds to the end; a
    warning says so. Half batches may change results by rounding.

    Raises:
        SurgeryError: when ``batch`` is below 1, or one item alone does not fit into memory.
    """
    if batch < 1:
        raise SurgeryError(f"batch is {batch}; expected 1 or more. Leave it out for the default.")
    results: list[T] = []
    start = 0
    while start < count:
        size = min(batch, count - start)
        try:
            results.append(work(slice(start, start + size)))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise SurgeryError(
                    "out of memory with a batch of one; expected room for at least one picture. "
                    "Sample smaller pictures, use half precision or another device."
                ) from error
            batch = size // 2
        else:
            start += size
            continue
        # outside of the handler, whose traceback keeps the batch's tensors alive
        _log.warning("out of memory with a batch of %d; going on with batches of %d", size, batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    # on the CPU torch reports a failed allocation as a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
