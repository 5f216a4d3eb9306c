"""Folders that exports write, which must not swallow what is none of theirs."""

import re
from pathlib import Path

from surgery.errors import PatchError


def refuse_foreign_files(out: Path, pattern: str) -> None:
    """Never replace a folder that holds more than an older export of the same kind.

    Args:
        out: Where the folder goes.
        pattern: What the paths in such an export look like, relative and with ``/``.

    Raises:
        PatchError: when ``out`` is a file, or a folder with something else in it.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise PatchError(f"{out} is a file; a new name, or the folder of an older export was expected.")
    for file in sorted(out.rglob("*")):
        path = file.relative_to(out).as_posix()
        if not file.is_dir() and not re.fullmatch(pattern, path):
            raise PatchError(
                f"{out} holds {path!r}, which is none of an export's files; a new name, or the folder of an "
                "older export was expected. Name another one."
            )
