"""Files and folders that appear whole under their final name, or not at all.

Everything is written under a temporary name beside the final one, flushed to the disk and renamed. All of it
goes through the primitives `write_bytes`, `fsync`, `rename` and `remove`; a test can watch and stop each of
them with `fault_hook`. What a killed process leaves behind (names ending in ``.partial`` or ``.previous``) is
cleared away, or put back, by the next run that writes the same final name. An empty file ending in ``.lock``
keeps two runs from writing one output at once; one that a killed run left hinders nobody.
"""

import ctypes
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

from surgery.checkpoint.outputs import refuse_existing, worded
from surgery.errors import SurgeryError

try:
    import fcntl
except ImportError:  # Windows, where a rename is refused while another writes
    fcntl = None  # type: ignore[assignment]

Bytes: TypeAlias = bytes | bytearray | memoryview
Hook: TypeAlias = Callable[[str, Path], None]

_NO_REPLACE, _EXCHANGE = 1, 2  # RENAME_NOREPLACE and RENAME_EXCHANGE of <linux/fs.h>

_in_use: ContextVar[frozenset[Path]] = ContextVar("surgery_scratch_folders", default=frozenset())
_hook: ContextVar[Hook | None] = ContextVar("surgery_write_hook", default=None)


@contextmanager
def fault_hook(hook: Hook) -> Iterator[None]:
    """Call ``hook(primitive, path)`` before every primitive step inside the block; for tests of interruption.

    The hook stops the writer by raising: an ``OSError`` is a full disk or the like, a ``BaseException`` that
    it goes on raising is a killed process, which cannot clean up either.
    """
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``; what the block writes there becomes ``path`` when it ends well.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set, or the disk refuses.
    """
    with _temporary(path, overwrite) as temporary:
        yield temporary
        fsync(temporary)
        refuse_existing(path, overwrite)
        if overwrite:
            rename(temporary, path)
        else:
            _give_name(temporary, path)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty temporary folder beside ``path``; it becomes ``path`` when the block ends well.

    An existing folder is replaced in one step where the system can swap two names (Linux), else in two, with
    the old one kept beside it until the new one stands.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set, or the disk refuses.
    """
    with _temporary(path, overwrite) as temporary:
        make_folder(temporary)
        yield temporary
        for inner in sorted(temporary.rglob("*")):
            fsync(inner)
        fsync(temporary)
        refuse_existing(path, overwrite)
        if not os.path.lexists(path):
            try:
                _give_name(temporary, path)
            except SurgeryError:  # another writer was faster
                if not (overwrite and path.exists()):
                    raise
                _replace_folder(temporary, path)
        elif path.is_symlink() and not path.exists():  # a link to nothing
            remove(path)
            rename(temporary, path)
        else:
            _replace_folder(temporary, path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for the length of the block; what a kill leaves goes with the next writer."""
    folder = _beside(path, "partial")
    make_folder(folder)
    token = _in_use.set(_in_use.get() | {folder})
    try:
        yield folder
    finally:
        _in_use.reset(token)
        remove(folder)


def write_bytes(path: Path, chunks: Iterable[Bytes]) -> None:
    """Write a new file from ``chunks``, one step each; memory stays bounded by the largest chunk."""
    with worded("write", path), path.open("xb") as handle:
        for chunk in chunks:
            _step("write", path)
            handle.write(chunk)


def make_folder(path: Path) -> None:
    """The folder and those above it, unless they are there.

    Raises:
        SurgeryError: when the disk refuses, or a file stands in the way.
    """
    with worded("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def fsync(path: Path) -> None:
    """Wait until the file, or the entries of the folder, are on the disk."""
    with worded("flush", path):
        _step("fsync", path)
        if path.is_dir() and os.name == "nt":
            return  # Windows cannot open a folder; its file system journals the entries itself
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Move ``source`` onto ``target`` in one step, in the same folder."""
    with worded("rename to", target):
        _step("rename", target)
        source.replace(target)


def _give_name(source: Path, target: Path) -> None:
    """Move ``source`` to a name that nothing has; where another writer was faster, its result stays.

    Raises:
        SurgeryError: when something stands there by now, or the disk refuses.
    """
    with worded("rename to", target):
        _step("rename", target)
        done = _rename_flags(source, target, _NO_REPLACE)
        if done is None:  # the system cannot; between the look before and this lies next to no time
            source.replace(target)
        elif not done:
            refuse_existing(target, overwrite=False)
            source.replace(target)


def replace(source: Path, target: Path) -> None:
    """Move a whole file or folder onto ``target`` on the same disk, in one step where the system can."""
    if source.is_dir() and target.is_dir():
        _replace_folder(source, target)
    else:
        rename(source, target)


def remove(path: Path) -> None:
    """Remove a file or a whole folder; what cannot be removed now is left to the next run."""
    _step("remove", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _temporary(path: Path, overwrite: bool) -> Iterator[Path]:
    """A fresh temporary name for ``path``, gone again after a failure."""
    make_folder(path.parent)
    with _locked(path):
        _sweep(path)
        refuse_existing(path, overwrite)
        temporary = _beside(path, "partial")
        try:
            yield temporary
        except BaseException:
            remove(temporary)
            raise
        fsync(path.parent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer of an output at a time; the system gives the lock back however a process ends.

    Raises:
        SurgeryError: when another writer has it, or the folder cannot be written to.
    """
    if fcntl is None:
        yield
        return
    place = path.with_name(f".{path.name}.lock")
    with worded("write", path):
        handle = _lock(place)
    if handle is None:
        raise SurgeryError(
            f"{path} is being written by another run; to be alone with an output was expected. Wait for "
            "that run, or choose another output."
        )
    try:
        yield
    finally:
        with suppress(OSError):
            place.unlink()
        os.close(handle)


def _lock(place: Path) -> int | None:
    """A descriptor of the locked file, which nobody has removed meanwhile; None where another has it."""
    assert fcntl is not None
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # a file system without locks
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), place.stat()):
                return handle
        os.close(handle)


def _replace_folder(temporary: Path, path: Path) -> None:
    with worded("replace", path):
        _step("rename", path)
        if _swap_names(temporary, path):
            remove(temporary)
            return
    previous = _beside(path, "previous")
    rename(path, previous)
    rename(temporary, path)
    remove(previous)


def _swap_names(left: Path, right: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    return bool(_rename_flags(left, right, _EXCHANGE))


def _rename_flags(source: Path, target: Path, flags: int) -> bool | None:
    """Linux' renameat2; whether it was done, or None where the system does not have it."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return None
    at_working_folder = -100  # AT_FDCWD of <fcntl.h>
    outcome = call(at_working_folder, os.fsencode(source), at_working_folder, os.fsencode(target), flags)
    return bool(outcome == 0)


def _beside(path: Path, suffix: str) -> Path:
    """A name in the same folder that tells which process and thread it belongs to."""
    owner = f"{os.getpid()}.{threading.get_native_id()}.{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}.{suffix}")


def _sweep(path: Path) -> None:
    """Clear what killed writers of ``path`` left; put back the old folder if one died between two renames."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(\d+)\.[0-9a-f]{{8}}\.(partial|previous)")
    for leftover in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(leftover.name)
        if not match or leftover in _in_use.get() or _lives(int(match[1]), int(match[2])):
            continue
        if match[3] == "previous" and not path.exists():
            rename(leftover, path)
        else:
            remove(leftover)


def _lives(process: int, thread: int) -> bool:
    """Whether another thread or process that is still running owns a leftover."""
    if process == os.getpid():
        others = {other.native_id for other in threading.enumerate()} - {threading.get_native_id()}
        return thread in others
    if os.name == "nt":
        return True  # no harmless way to ask there, so a foreign leftover stays
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended and only its parent has not looked yet (Linux)."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
    return False


def _step(primitive: str, path: Path) -> None:
    hook = _hook.get()
    if hook is not None:
        hook(primitive, path)
