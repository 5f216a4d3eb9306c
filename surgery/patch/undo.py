"""The undo file: the bits that applying a patch overwrote, so that reverting needs no base.

One safetensors file. Per touched tensor ``<name>::old`` holds the old values: of all elements, or, where that
is smaller, of the changed ones, with their flat positions in ``<name>::positions``. The header's
``sdpatch.undo`` says which patch it belongs to, and the digests before and after.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.atomic import atomic_file, fsync, write_bytes
from surgery.checkpoint.digest import Digest
from surgery.checkpoint.header import TensorEntry, open_header, read_header
from surgery.checkpoint.reader import read_blocks, read_chunks, read_tensor
from surgery.checkpoint.serialise import Lazy, safetensors_chunks
from surgery.checkpoint.texts import parse_json
from surgery.errors import PatchError, raise_all
from surgery.patch.manifest import digest_from, digest_json, dump, refuse_version
from surgery.patch.model import Edit
from surgery.patch.rounding import bits_of

VERSION: Final = "1"
_UNDO: Final = "sdpatch.undo"
_POSITION: Final = torch.int32  # bytes of one position decide between the two encodings

Edits = Callable[[str], Iterator[Edit]]
"""From a name to the tensor before and after, in blocks of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overwritten:
    """One tensor that applying changes: digests, type, shape, and how many elements change."""

    before: Digest
    after: Digest
    dtype: torch.dtype
    shape: tuple[int, ...]
    changed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """An undo file, opened: the digest of its patch, and per tensor digests and where the old bits lie."""

    path: Path
    patch: str
    digests: Mapping[str, tuple[Digest, Digest]]
    entries: Mapping[str, TensorEntry]

    def restore(self, name: str, edited: Iterable[Tensor]) -> Iterator[Tensor]:
        """The old tensor, from the edited one and the old bits, both in blocks of rows."""
        places = self.entries.get(f"{name}::positions")
        if places is None:
            yield from (block for _, block in read_blocks(self.entries[f"{name}::old"]))
            return
        positions, old = read_tensor(places).long(), read_tensor(self.entries[f"{name}::old"])
        start = 0
        for block in edited:
            first, last = torch.searchsorted(positions, torch.tensor([start, start + block.numel()])).tolist()
            restored = block.clone()
            restored.view(-1)[positions[first:last] - start] = old[first:last]
            start += block.numel()
            yield restored


@contextmanager
def undo_file(
    path: Path, patch: str, tensors: Mapping[str, Overwritten], edits: Edits, *, overwrite: bool = False
) -> Iterator[None]:
    """The undo file of an application, whole on the disk before the block that writes the checkpoint begins.

    Some rows of a tensor are in memory at a time. An older undo file is replaced only when the block ends
    well: until then it belongs to the older checkpoint, which stands. A kill between the two renames leaves
    the new checkpoint with the older undo file, and applying again to the same base mends it. A file that
    already holds exactly this is left alone, so that a killed application can be run again.

    Args:
        path: Where to.
        patch: Digest of the patch.
        tensors: What applying changes.
        edits: Make a tensor as it was and as it becomes.
        overwrite: Allow an existing file to be replaced.

    Raises:
        SurgeryError: when ``path`` exists with other content, or the disk refuses.
    """
    described = {
        name: {"before": digest_json(tensor.before), "after": digest_json(tensor.after)}
        for name, tensor in tensors.items()
    }
    content = {"version": VERSION, "patch": patch, "tensors": described}
    metadata = {"format": "pt", _UNDO: dump(content)}
    lazy: dict[str, Tensor | Lazy] = {}
    for name, tensor in tensors.items():
        lazy |= _planned(name, tensor, edits)
    older = path.is_file()
    if older and _file_digest(path) == _digest(lazy, metadata):
        yield
        return
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(lazy, metadata))
        fsync(temporary)
        if older:
            yield
    if not older:
        yield


def is_undo(path: Path) -> bool:
    """Whether a path is an undo file of any version, sound or not, by its header."""
    header = read_header(path)[0] if path.is_file() else None
    return header is not None and _UNDO in header.metadata


def read_undo(path: Path) -> Undo:
    """An undo file, checked as far as headers go; the restored tensors have digests of their own.

    Raises:
        PatchError: when the file is damaged, of an unknown version, or no undo file.
    """
    header = open_header(path, PatchError)
    entries = {entry.key: entry for entry in header.entries}
    try:
        content = parse_json(header.metadata[_UNDO])
        version, patch = content["version"], str(content["patch"])
        digests = {
            name: (digest_from(raw["before"]), digest_from(raw["after"]))
            for name, raw in content["tensors"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PatchError(
            f"{path} is no undo file of this program ({error!r}); choose the one apply wrote."
        ) from error
    refuse_version(version, VERSION, f"{path} is an undo file")
    missing = [name for name in digests if f"{name}::old" not in entries]
    raise_all(PatchError, [f"{path} lacks the old values of {name!r}; it is damaged." for name in missing])
    return Undo(path=path, patch=patch, digests=digests, entries=entries)


def _planned(name: str, tensor: Overwritten, edits: Edits) -> dict[str, Lazy]:
    """Old values of everything, or of what changes where that is smaller."""
    size = tensor.dtype.itemsize
    elements = torch.Size(tensor.shape).numel()
    if (
        tensor.changed * (size + _POSITION.itemsize) >= elements * size
        or elements > torch.iinfo(_POSITION).max
    ):
        return {
            f"{name}::old": Lazy(dtype=tensor.dtype, shape=tensor.shape, make=partial(_before, name, edits))
        }

    def positions() -> Iterator[Tensor]:
        start = 0
        for edit in edits(name):
            yield (bits_of(edit.before) != bits_of(edit.after)).reshape(-1).nonzero()[:, 0].to(
                _POSITION
            ) + start
            start += edit.before.numel()

    def old() -> Iterator[Tensor]:
        for before, after in edits(name):
            yield before[bits_of(before) != bits_of(after)]

    shape = (tensor.changed,)
    return {
        f"{name}::positions": Lazy(dtype=_POSITION, shape=shape, make=positions),
        f"{name}::old": Lazy(dtype=tensor.dtype, shape=shape, make=old),
    }


def _before(name: str, edits: Edits) -> Iterator[Tensor]:
    return (edit.before for edit in edits(name))


def _digest(tensors: Mapping[str, Tensor | Lazy], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for chunk in safetensors_chunks(tensors, metadata):
        digest.update(chunk)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in read_chunks(path, 0, path.stat().st_size):
        digest.update(chunk)
    return digest.hexdigest()
