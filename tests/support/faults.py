"""Stops a writer at one chosen step, the way a killed process or a full disk does."""

import errno
from collections.abc import Callable
from pathlib import Path

from surgery.checkpoint import atomic
from surgery.checkpoint.atomic import fault_hook


class Killed(BaseException):
    """The process is gone; nothing may catch this and carry on."""


class Kill:
    """Dies at step ``at`` (from 0) and at all later ones, leaving torn bytes in a half-written file."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def __call__(self, primitive: str, path: Path) -> None:
        dead = self.steps >= self.at
        self.steps += 1
        if dead:
            if primitive == "write" and self.steps == self.at + 1:
                with path.open("ab") as torn:
                    torn.write(b"torn")
            raise Killed(f"at step {self.at}, {primitive} {path.name}")


class FullDisk:
    """Refuses the write at step ``at`` and every later write; renaming and removing still work."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def __call__(self, primitive: str, path: Path) -> None:
        self.steps += 1
        if self.steps > self.at and primitive == "write":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


class Trace:
    """Writes down every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Path]] = []

    def __call__(self, primitive: str, path: Path) -> None:
        self.steps.append((primitive, path))


def count_steps(work: Callable[[], object]) -> int:
    """How many steps ``work`` takes when nothing stops it."""
    trace = Trace()
    with fault_hook(trace):
        work()
    return len(trace.steps)


def names_can_be_swapped(folder: Path) -> bool:
    """Whether the system and the file system of ``folder`` exchange two names in one step."""
    left, right = folder / "swap left", folder / "swap right"
    left.mkdir()
    right.mkdir()
    able = atomic._swap_names(left, right)
    left.rmdir()
    right.rmdir()
    return able
