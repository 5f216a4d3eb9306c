"""Outputs checked before any work for them: what may be written or replaced, and how a refusal reads."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from surgery.errors import SurgeryError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """An output that exists is replaced only when asked for.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set.
    """
    if os.path.lexists(path) and not overwrite:
        raise SurgeryError(
            f"{path} exists already; a new name was expected. "
            "Choose another output, or allow it to be replaced (--overwrite)."
        )


def check_outputs(
    outputs: Iterable[Path | None], inputs: Sequence[Path | None], *, overwrite: bool = False
) -> None:
    """Refuse files to write, before any work for them, that cannot be written or would cost an input.

    Args:
        outputs: Files to write; None for those that were not asked for.
        inputs: Files and folders that are read; none is ever written to or into.
        overwrite: Whether an existing file may be replaced.

    Raises:
        SurgeryError: when an output is an input, by whatever name, or lies in one; when two outputs are one;
            when one exists and may not be replaced, is a folder, or stands where nothing can be written.
    """
    wanted = [path for path in outputs if path is not None]
    for number, path in enumerate(wanted):
        refuse_inputs(path, [*inputs, *wanted[:number]])
        if path.is_dir():
            raise SurgeryError(f"{path} is a folder; a new file was expected. Name a file in it.")
        refuse_existing(path, overwrite)
        refuse_unwritable(path)


def refuse_inputs(output: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse a file or folder to write that is an input, by whatever name, lies in one, or holds one.

    Raises:
        SurgeryError: naming both.
    """
    for other in inputs:
        if other is not None and _one_place(output, other):
            raise SurgeryError(
                f"the output {output} and {other}, which this command uses too, are one or lie inside each "
                "other; a place of its own was expected. Choose another name."
            )


def _one_place(output: Path, other: Path) -> bool:
    """Whether two paths are one file, or one of them is a folder that the other lies in."""
    try:
        if output.exists() and other.exists() and output.samefile(other):
            return True
        inner, outer = output.resolve(), other.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null in a name: said when it is opened
        return False
    return inner == outer or outer in inner.parents or inner in outer.parents


def refuse_unwritable(path: Path) -> None:
    """Refuse an output that could not be written, before the work for it; nothing is created.

    Raises:
        SurgeryError: when the folder it would stand in cannot be made or written to.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    with worded("write", path):
        if not folder.is_dir():
            raise NotADirectoryError
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError


def refuse_foreign_files(out: Path, pattern: str, what: str) -> None:
    """Never replace a folder that holds more than an older output of the same kind.

    Args:
        out: Where the folder goes.
        pattern: What the paths in such a folder look like, relative and with ``/``.
        what: What such a folder is, for the message: ``an export``.

    Raises:
        SurgeryError: when ``out`` is a file, or a folder with something else in it.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise SurgeryError(f"{out} is a file; a new name, or the folder of {what} was expected.")
    paths = (file.relative_to(out).as_posix() for file in sorted(out.rglob("*")) if not file.is_dir())
    foreign = [path for path in paths if not re.fullmatch(pattern, path)]
    if foreign:
        some = ", ".join(foreign[:3])
        raise SurgeryError(
            f"{out} holds other files ({some}); a new name, or the folder of {what} was expected. Name "
            "another one."
        )


@contextmanager
def worded(action: str, path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that says what to do."""
    try:
        yield
    except IsADirectoryError as error:
        raise SurgeryError(
            f"cannot {action} {path}: a folder stands there, and a file was expected. Choose another name."
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise SurgeryError(
            f"cannot {action} {path}: a file stands where a folder was expected. Choose another place."
        ) from error
    except PermissionError as error:
        raise SurgeryError(
            f"cannot {action} {path}: it is not yours to write; a place that you may write to was expected. "
            "Choose another one, or change its permissions."
        ) from error
    except OSError as error:
        raise SurgeryError(
            f"cannot {action} {path}: {error.strerror or error}; a writable disk with enough space was "
            "expected. Nothing half-written stands under a final name: make room or choose another place, "
            "and run again."
        ) from error
