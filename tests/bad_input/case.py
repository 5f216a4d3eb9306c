"""One bad input: what is wrong, how it is made, which verb gets it, and what must be said."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sound:
    """What is as it should be and may not be written to: a base, its patch, and what comes of them."""

    base: Path
    single: Path
    patch: Path
    edited: Path
    undo: Path


@dataclass(frozen=True)
class Place:
    """Where a case makes its files, and the sound ones it may use."""

    root: Path
    sound: Sound

    @property
    def out(self) -> Path:
        """What a verb is told to write, and may not."""
        return self.root / "out"

    @property
    def mark(self) -> Path:
        """What appears when code in a file was run."""
        return self.root / "code was run"


Make = Callable[[Place], Sequence[object]]


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        fault: The class it belongs to.
        name: What tells it from others of the class.
        make: Writes the files and gives the program's arguments.
        says: A pattern that the message matches.
        code: The exit code.
    """

    fault: str
    name: str
    make: Make
    says: str
    code: int = 1

    def __str__(self) -> str:
        return f"{self.fault}: {self.name}"


def safetensors_bytes(
    table: Mapping[str, Any] | bytes | str, data: bytes = b"", length: int | None = None
) -> bytes:
    """The bytes of a safetensors file with this header, sound or not."""
    if isinstance(table, bytes):
        text = table
    else:
        text = (table if isinstance(table, str) else json.dumps(table)).encode("utf-8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data
