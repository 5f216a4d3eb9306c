"""The native patch file: one safetensors file, equal bytes for equal content, as ``FORMAT.md`` says it."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.digest import tensor_bytes
from surgery.checkpoint.header import DTYPE_NAMES, open_header, read_header
from surgery.checkpoint.reader import read_tensor
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.checkpoint.spool import Spool
from surgery.errors import PatchError, raise_all
from surgery.patch.manifest import VERSION, metadata_of, patch_from, refuse_version, tensors_in
from surgery.patch.model import Patch
from surgery.record import file_digest

_CONTENT = "sdpatch.content"
_VERSION = "sdpatch.version"
_IN_MEMORY = 16_000_000  # bytes of a patch that are held; of a larger one the disk keeps what is in use


def save_patch(patch: Patch, path: Path, *, overwrite: bool = False) -> str:
    """Write a patch file; the sha256 of the file comes back, which is the patch's digest.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set, or the disk refuses.
    """
    tensors, metadata = _content(patch)
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata))
    return _written_digest(patch)


def patch_digest(patch: Patch) -> str:
    """The sha256 of the file that the patch was read from, or would be written as."""
    return patch.file_digest or _written_digest(patch)


def _written_digest(patch: Patch) -> str:
    digest = hashlib.sha256()
    for chunk in safetensors_chunks(*_content(patch)):
        digest.update(chunk)
    return digest.hexdigest()


def load_patch(path: Path) -> Patch:
    """The patch in a file, checked through and through.

    Raises:
        PatchError: listing every fault: a damaged file, an unknown version, missing tensors, wrong shapes,
            numbers that are none, content that is not what its digest says.
    """
    header = open_header(path, PatchError)
    _refuse_other_files(path, header.metadata)
    spool = Spool()
    large = sum(entry.end - entry.start for entry in header.entries) > _IN_MEMORY
    keep: Callable[[Tensor], Tensor] = spool.keep if large else lambda tensor: tensor
    tensors = {entry.key: keep(read_tensor(entry)) for entry in header.entries}
    if header.metadata.get(_CONTENT) != _content_digest(tensors, header.metadata):
        raise PatchError(
            f"{path} is damaged, or was changed by hand: its content has another digest. Fetch it again."
        )
    patch, faults = patch_from(header.metadata, tensors, keep)
    if patch is None:
        raise_all(PatchError, [f"{path}: {fault}" for fault in faults])
        raise PatchError(f"{path} cannot be read.")
    object.__setattr__(patch, "file_digest", file_digest(path))
    return patch


def is_patch(path: Path) -> bool:
    """Whether a path is a patch file of any version, sound or not, by its header."""
    if not path.is_file():
        return False
    header, _ = read_header(path)
    return header is not None and _VERSION in header.metadata


def _refuse_other_files(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get(_VERSION)
    if version is None:
        raise PatchError(
            f"{path} is a safetensors file, but no patch of this program (no sdpatch.version in its header). "
            "A LoRA or a checkpoint cannot be used in place of a patch."
        )
    refuse_version(version, VERSION, f"{path} is a patch")


def _content(patch: Patch) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = tensors_in(patch), metadata_of(patch)
    return tensors, metadata | {_CONTENT: _content_digest(tensors, metadata)}


def _content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Over our header texts and the tensors, both sorted; texts that other tools add do not count."""
    digest = hashlib.sha256()
    for key in sorted(metadata):
        if key.startswith("sdpatch.") and key != _CONTENT:
            digest.update(f"{key}\0{metadata[key]}\0".encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{key}\0{DTYPE_NAMES[tensor.dtype]}\0{shape}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
