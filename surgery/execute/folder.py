"""The folder of a run: claimed by one plan, finished by run.json, resumed when a run was stopped."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from surgery.checkpoint.atomic import atomic_file, make_folder, remove, write_bytes
from surgery.checkpoint.writer import refuse_foreign
from surgery.errors import SurgeryError
from surgery.names import CHECKPOINT_FOLDER, LORA_FILE, PATCH_FILE, RUN_FILE, SHEET_FILE
from surgery.record import JSON

_log = logging.getLogger(__name__)

_CLAIM: Final = "unfinished.json"
_LOCK: Final = ".running.lock"
_OURS: Final = frozenset({_CLAIM, CHECKPOINT_FOLDER, LORA_FILE, PATCH_FILE, RUN_FILE, SHEET_FILE})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Where a run writes; ``resumed`` says that an earlier try of the same plan was stopped here."""

    path: Path
    resumed: bool

    @property
    def patch(self) -> Path:
        """The patch file."""
        return self.path / PATCH_FILE

    @property
    def lora(self) -> Path:
        """The LoRA file."""
        return self.path / LORA_FILE

    @property
    def checkpoint(self) -> Path:
        """The edited checkpoint."""
        return self.path / CHECKPOINT_FOLDER

    @property
    def sheet(self) -> Path:
        """The before/after picture."""
        return self.path / SHEET_FILE

    def finish(self, record: Mapping[str, JSON]) -> Path:
        """Writes run.json, the sign of a finished run; returns its path."""
        path = self.path / RUN_FILE
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic_file(path, overwrite=True) as temporary:
            write_bytes(temporary, [text.encode()])
        remove(self.path / _CLAIM)
        return path


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """No other process runs in the folder inside this context; the system frees a dead process's lock.

    Raises:
        SurgeryError: when another one does.
    """
    _refuse_file(path)
    make_folder(path)
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SurgeryError(
            f"another run is writing into {path}; expected a folder of its own for each. "
            "Wait for it to end, or name another folder."
        ) from error
    except OSError as error:
        raise SurgeryError(f"cannot write into {path}: {error.strerror}. Name another folder.") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (path / _LOCK).unlink()
        lock.release()


def refuse_taken(path: Path, plan_identity: str, *, overwrite: bool = False) -> None:
    """Refuse a folder that ``claim_folder`` would not take; nothing in it changes.

    Raises:
        SurgeryError: when it holds another run or foreign files and ``overwrite`` is not set, or a folder of
            other things where the checkpoint would stand.
    """
    if overwrite:
        refuse_foreign(path / CHECKPOINT_FOLDER, "folder")
    elif _claimed_by(path / _CLAIM) != plan_identity:
        _refuse_used(path)


def claim_folder(path: Path, plan_identity: str, *, overwrite: bool = False) -> RunFolder:
    """Take ``path`` for a run of one plan: new, left by a stopped try of the same plan, or to be overwritten.

    With ``overwrite`` everything that an older run wrote goes; other files stay.

    Raises:
        SurgeryError: as ``refuse_taken``.
    """
    refuse_taken(path, plan_identity, overwrite=overwrite)
    claim = path / _CLAIM
    resumed = _claimed_by(claim) == plan_identity
    make_folder(path)
    if (path / RUN_FILE).exists():
        remove(path / RUN_FILE)  # from here on the folder says of itself that it is unfinished
    if resumed:
        _log.info("%s holds a stopped run of this plan; going on with it", path)
    else:
        for name in sorted(_OURS):  # nothing of another run may stand beside this one's results
            remove(path / name)
        with atomic_file(claim, overwrite=True) as temporary:
            write_bytes(temporary, [json.dumps({"plan": plan_identity}).encode()])
    return RunFolder(path=path, resumed=resumed)


def _claimed_by(claim: Path) -> str | None:
    try:
        plan = json.loads(claim.read_bytes())["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return plan if isinstance(plan, str) else None


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise SurgeryError(f"{path} is a file; a run needs a folder. Name another one.")


def _refuse_used(path: Path) -> None:
    _refuse_file(path)
    held = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    held = [name for name in held if not _is_leftover(name)]
    if not held:
        return
    what = "a run" if _OURS & set(held) else f"other files ({', '.join(held[:3])})"
    raise SurgeryError(
        f"{path} already holds {what}; expected a new or empty folder. Name another one, or pass --overwrite."
    )


def _is_leftover(name: str) -> bool:
    """Whether a name is what a killed writer leaves behind; the next writer clears it away."""
    return name == _LOCK or (name.startswith(".") and name.endswith((".partial", ".previous")))
