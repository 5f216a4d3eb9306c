"""Which inputs are worth keeping: the smallest that together reach every line, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

PACKAGE: Final = str(Path(__file__).resolve().parents[2] / "surgery")

Arc = tuple[str, int, int]


class Lines:
    """Which line of the package follows which, while something runs."""

    def __init__(self) -> None:
        self.arcs: set[Arc] = set()
        self._last: dict[int, int] = {}

    def __enter__(self) -> Lines:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *ignored: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._step if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            here = frame.f_lineno
            self.arcs.add((frame.f_code.co_filename, self._last.get(id(frame), 0), here))
            self._last[id(frame)] = here
        elif event == "return":
            self._last.pop(id(frame), None)
        return self._step


def fewest(files: Iterable[Path], read: Any, room: int) -> list[Path]:
    """The inputs that reach what no smaller one reaches, as long as there is room (bytes) for them.

    Inputs whose reader fails are left out: they are no inputs to keep, but faults to mend.
    """
    reached: set[Arc] = set()
    kept = []
    for file in sorted(files, key=lambda file: (file.stat().st_size, file.name)):
        lines = Lines()
        try:
            with lines:
                read(file.read_bytes())
        except Exception as error:
            print(f"{file.name} is left out: {error!r}")
            continue
        if not lines.arcs <= reached and file.stat().st_size <= room:
            reached |= lines.arcs
            room -= file.stat().st_size
            kept.append(file)
    return kept
