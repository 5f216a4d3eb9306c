"""Progress on stderr: one way to show it, silent where nobody watches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_silent: ContextVar[bool] = ContextVar("surgery_progress_silent", default=False)


class Bar(Protocol):
    """What a caller may do with a progress bar."""

    def update(self, n: float = 1) -> object:
        """Move on by ``n`` units."""


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """The same items, one after the other, with a bar on stderr when it is a terminal."""
    yield from tqdm(items, desc=description, total=total, unit=unit, disable=_disabled(), leave=False)


@contextmanager
def bar(total: int, description: str, unit: str = "it") -> Iterator[Bar]:
    """A bar that the caller moves with ``update(n)``; it is closed also when an exception passes."""
    with tqdm(total=total, desc=description, unit=unit, disable=_disabled(), leave=False) as shown:
        yield shown


@contextmanager
def silence() -> Iterator[None]:
    """No bars inside this context; for the command line's ``-q``."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def _disabled() -> bool | None:
    # tqdm reads None as "only when stderr is no terminal"
    return True if _silent.get() else None
