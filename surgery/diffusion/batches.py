"""Work in batches that halve themselves when memory runs out."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

import torch

from surgery.errors import SurgeryError
from surgery.record import Finding

_log = logging.getLogger(__name__)

T = TypeVar("T")


_noted: ContextVar[list[Finding] | None] = ContextVar("surgery_halvings", default=None)


@contextmanager
def noting_halvings() -> Iterator[list[Finding]]:
    """A list that holds, when the block ends, which work was halved inside since memory ran out, each once.

    Halves are computed under other keys and may differ in their last bits: a run tells of them.
    """
    found: list[Finding] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)
        found[:] = dict.fromkeys(found)


def note_halving(what: str, size: int) -> None:
    """Tell the log, and whoever listens, that ``size`` of something do not fit into memory at once."""
    message = f"{size} at once do not fit into memory; went on with halves"
    _log.warning("out of memory: of %s %s", what, message)
    found = _noted.get()
    if found is not None:
        found.append(Finding(kind="out-of-memory", subject=what, message=f"{message}.", severity="warning"))


def in_batches(count: int, batch: int, work: Callable[[slice], T], *, halve: bool = True) -> list[T]:
    """Results of ``work`` on consecutive slices of at most ``batch`` out of ``count`` items.

    When a slice runs out of memory it is tried again at half the size, which then holds to the end; a
    warning says so. Half batches may change results by rounding: without ``halve`` the error goes on to the
    caller instead, who can begin again under another name (``halving``).

    Raises:
        SurgeryError: when ``batch`` is below 1, or one item alone does not fit into memory.
    """
    if batch < 1:
        raise SurgeryError(f"batch is {batch}; expected 1 or more. Leave it out for the default.")
    results: list[T] = []
    start = 0
    while start < count:
        size = min(batch, count - start)
        attempt = partial(_attempt, work, start)
        done, result = halving(size, attempt) if halve else attempt(size)
        results.append(result)
        start += done
        batch = batch if done == size else done
    return results


def _attempt(work: Callable[[slice], T], start: int, size: int) -> tuple[int, T]:
    return size, work(slice(start, start + size))


def halving(batch: int, work: Callable[[int], T]) -> T:
    """The result of ``work(batch)``; of half the batch when memory runs out, and so on; a warning says so.

    Raises:
        SurgeryError: when a batch of one does not fit into memory either.
    """
    while True:
        try:
            return work(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if batch == 1:
                raise SurgeryError(
                    "out of memory with a batch of one; expected room for at least one picture. "
                    "Sample smaller pictures, use half precision or another device."
                ) from error
        # outside of the handler, whose traceback keeps the batch's tensors alive
        note_halving("pictures", batch)
        batch //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    # on the CPU torch reports a failed allocation as a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
