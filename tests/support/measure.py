"""What a piece of work costs: bytes it reads, memory it takes. Linux only, where the tests run."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Count:
    """A number that is there when the block has ended."""

    count: int = 0


@contextmanager
def bytes_read() -> Iterator[Count]:
    """How many bytes this process asks the system for inside the block, from the disk or its cache."""
    found, before = Count(), _characters()
    yield found
    found.count = _characters() - before


@contextmanager
def peak_memory(every_s: float = 0.005) -> Iterator[Count]:
    """The most memory of this process inside the block that is no file's, in bytes, as far as is seen."""
    found, done = Count(anonymous_bytes()), threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            found.count = max(found.count, anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found.count = max(found.count, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    return _kilobytes("/proc/self/status", r"RssAnon:\s+(\d+) kB") * 1024


def _characters() -> int:
    return _kilobytes("/proc/self/io", r"rchar: (\d+)")


def _kilobytes(file: str, pattern: str) -> int:
    match = re.search(pattern, Path(file).read_text())
    assert match is not None
    return int(match[1])
