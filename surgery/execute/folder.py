"""The folder of a run: claimed by one plan, finished by run.json, resumed when a run was stopped."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from surgery.checkpoint.atomic import atomic_file, make_folder, remove, replace, write_bytes
from surgery.checkpoint.writer import refuse_foreign
from surgery.errors import SurgeryError
from surgery.names import CHECKPOINT_FOLDER, LORA_FILE, PATCH_FILE, RUN_FILE, SHEET_FILE
from surgery.record import JSON, file_digest

_log = logging.getLogger(__name__)

_CLAIM: Final = "unfinished.json"
_STAGE: Final = "unfinished"
_LOCK: Final = ".running.lock"
_CACHE: Final = "cache"
_RESULTS: Final = (CHECKPOINT_FOLDER, LORA_FILE, PATCH_FILE, SHEET_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Where a run writes; ``resumed`` says that an earlier try of the same plan was stopped here.

    ``work`` is where its files are until it is finished: the folder itself, or, where an older run is to be
    replaced, a folder inside of it, so that the older one stays whole until then.
    """

    path: Path
    work: Path
    resumed: bool

    @property
    def patch(self) -> Path:
        """The patch file."""
        return self.work / PATCH_FILE

    @property
    def lora(self) -> Path:
        """The LoRA file."""
        return self.work / LORA_FILE

    @property
    def checkpoint(self) -> Path:
        """The edited checkpoint."""
        return self.work / CHECKPOINT_FOLDER

    @property
    def sheet(self) -> Path:
        """The before/after picture."""
        return self.work / SHEET_FILE

    @property
    def cache(self) -> Path:
        """Stored results, where the caller has no folder for them."""
        return self.path / _CACHE

    def files(self) -> dict[str, JSON]:
        """Size and sha256 of every result, by its place in the folder; ``autov2`` is what model sites show.

        Source: ``AutoV2`` of A1111's ``modules/hashes.py``: the first ten digits of the file's sha256.
        """
        found: dict[str, JSON] = {}
        for place in (self.work / name for name in _RESULTS):
            for path in (place, *sorted(place.rglob("*"))):
                if path.is_file():
                    digest = file_digest(path)
                    name = path.relative_to(self.work).as_posix()
                    found[name] = {"bytes": path.stat().st_size, "sha256": digest, "autov2": digest[:10]}
        return found

    def finish(self, record: Mapping[str, JSON]) -> "RunFolder":
        """Put all in its place, run.json last, the sign of a finished run; the folder as it is then."""
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if self.work != self.path:
            remove(self.path / RUN_FILE)  # from here on the folder says of itself that it is unfinished
            for name in _RESULTS:
                if (self.work / name).exists():
                    replace(self.work / name, self.path / name)
                else:  # nothing of another run may stand beside this one's results
                    remove(self.path / name)
        with atomic_file(self.path / RUN_FILE, overwrite=True) as temporary:
            write_bytes(temporary, [text.encode()])
        remove(self.path / _CLAIM)
        remove(self.path / _STAGE)
        return RunFolder(path=self.path, work=self.path, resumed=self.resumed)


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
    elif _claimed_by(path) != plan_identity:
        _refuse_used(path)


def claim_folder(path: Path, plan_identity: str, *, overwrite: bool = False) -> RunFolder:
    """Take ``path`` for a run of one plan: new, left by a stopped try of the same plan, or to be overwritten.

    With ``overwrite`` everything that an older run wrote goes when this one is finished; other files stay.

    Raises:
        SurgeryError: as ``refuse_taken``.
    """
    refuse_taken(path, plan_identity, overwrite=overwrite)
    stopped = _claimed_by(path) == plan_identity
    held = not stopped and any((path / name).exists() for name in (RUN_FILE, *_RESULTS))
    work = path / _STAGE if held else path
    resumed = _claimed_by(work) == plan_identity
    if resumed:
        _log.info("%s holds a stopped run of this plan; going on with it", path)
    else:
        remove(path / _STAGE)
        make_folder(work)
        with atomic_file(work / _CLAIM, overwrite=True) as temporary:
            write_bytes(temporary, [json.dumps({"plan": plan_identity}).encode()])
    return RunFolder(path=path, work=work, resumed=resumed)


def _claimed_by(folder: Path) -> str | None:
    try:
        plan = json.loads((folder / _CLAIM).read_bytes())["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return plan if isinstance(plan, str) else None


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise SurgeryError(f"{path} is a file; a run needs a folder. Name another one.")


def _refuse_used(path: Path) -> None:
    _refuse_file(path)
    held = {item.name for item in path.iterdir() if not _is_leftover(item.name)} if path.is_dir() else set()
    if _CLAIM in held:
        held -= {_CLAIM, _CACHE}  # a run that was stopped before it wrote anything
    if not held:
        return
    ours = held & {RUN_FILE, *_RESULTS}
    what = "a run" if ours else f"other files ({', '.join(sorted(held)[:3])})"
    raise SurgeryError(
        f"{path} already holds {what}; expected a new or empty folder. Name another one, or pass --overwrite."
    )


def _is_leftover(name: str) -> bool:
    """Whether a name is what a killed writer leaves behind; the next writer clears it away."""
    return name == _LOCK or (name.startswith(".") and name.endswith((".partial", ".previous")))
