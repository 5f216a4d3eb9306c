"""Content-addressed results: a folder of tensors and plain data for every key.

The key is the sha256 of everything that the result depends on, the versions of the libraries among it, as
canonical JSON. An entry stands under its
key only when it is whole: the folder is written under another name, ``done.json`` last, and renamed. What is
damaged later (a missing, short or changed file) counts as not there, is named in the log and computed again.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch import Tensor

from surgery.checkpoint.atomic import atomic_folder, make_folder, remove, write_bytes
from surgery.errors import StoreError
from surgery.record import JSON, json_digest
from surgery.store.libraries import library_versions

_log = logging.getLogger(__name__)

_TENSORS, _DONE = "tensors.safetensors", "done.json"

Computed: TypeAlias = tuple[Mapping[str, Tensor], Mapping[str, JSON]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """A whole entry: plain ``data`` at hand, tensors read when asked for."""

    folder: Path
    data: Mapping[str, Any] = field(repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the entry, on the CPU, in the dtypes they were put in with."""
        tensors: dict[str, Tensor] = load_file(self.folder / _TENSORS)
        return tensors


class Store:
    """Results under one folder; any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def key(meaning: Mapping[str, JSON]) -> str:
        """The key of a result that depends on ``meaning``, on the installed libraries and on nothing else.

        Raises:
            StoreError: when ``meaning`` is no JSON, since it would have no stable spelling.
        """
        try:
            whole: JSON = {"libraries": library_versions(), "meaning": meaning}
            return json_digest(whole)
        except (TypeError, ValueError) as error:
            raise StoreError(f"a key is made of plain JSON with finite numbers, but {error}.") from error

    def get(self, key: str) -> StoredResult | None:
        """The entry of ``key``, or None when there is none or it is damaged (the log says which)."""
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        try:
            return StoredResult(folder=folder, data=_checked(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("stored result %s is damaged (%s) and is computed again", folder, error)
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor], data: Mapping[str, JSON]) -> StoredResult:
        """The entry of ``key``, written whole; an older one is replaced.

        Raises:
            StoreError: when ``data`` is no JSON.
            SurgeryError: when the disk refuses.
        """
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        try:
            done = {"data": data, "data_sha256": json_digest(data), "tensors_sha256": _digest(content)}
            text = json.dumps(done, indent=1, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"a result's data is plain JSON with finite numbers, but {error}.") from error
        with atomic_folder(self._folder(key), overwrite=True) as folder:
            write_bytes(folder / _TENSORS, [content])
            write_bytes(folder / _DONE, [text.encode()])
        return StoredResult(folder=self._folder(key), data=json.loads(text)["data"])

    def drop(self, key: str) -> None:
        """Remove the entry of ``key``; does nothing where there is none."""
        remove(self._folder(key))

    def remember(self, key: str, compute: Callable[[], Computed]) -> StoredResult:
        """The entry of ``key``; computed and put first when there is none.

        Of several processes that ask at once, one computes and the others wait for it.
        """
        with self.locked(key):
            return self.get(key) or self.put(key, *compute())

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Nobody else holds ``key``'s lock inside this context; the system frees a dead process's lock."""
        path = self._folder(key).with_suffix(".lock")
        make_folder(path.parent)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.info("waiting for another run that computes %s", key[:12])
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _folder(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise StoreError(f"{key!r} is no key of this store; expected what Store.key returns.")
        return self.root / key[:2] / key


def _checked(folder: Path) -> Mapping[str, Any]:
    """The data of an entry whose files are what ``done.json`` says.

    Raises:
        ValueError: when they are not.
    """
    done = json.loads((folder / _DONE).read_bytes())
    with (folder / _TENSORS).open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != done["tensors_sha256"]:
        raise ValueError(f"{_TENSORS} has other bytes than were written")
    data: Mapping[str, Any] = done["data"]
    if json_digest(data) != done["data_sha256"]:
        raise ValueError(f"{_DONE} has other data than was written")
    return data


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
