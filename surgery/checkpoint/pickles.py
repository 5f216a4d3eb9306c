"""Tensors out of a pickled checkpoint (``.ckpt``, ``.bin``, ``.pt``), read without running anything in it.

Everything else here refuses pickles. This way out is for files that exist in no other form: torch's reader of
weights alone builds tensors and plain containers, and stops at the first name of anything else; what it built
is then held against the size of the file, and written as safetensors.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.serialization import safe_globals

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.header import DTYPE_NAMES, LONGEST_KEY, TENSOR_LIMIT
from surgery.checkpoint.serialise import Lazy, Written, safetensors_chunks
from surgery.checkpoint.texts import regular_size
from surgery.checkpoint.weights import PICKLES
from surgery.checkpoint.writer import refuse_foreign, refuse_overlap
from surgery.errors import CheckpointError, brief, raise_all

_LARGEST_TABLE: Final = 50_000_000  # bytes of the pickle itself, without the tensors; SD 1.5 takes 0.2 MB
_STORED: Final = 2  # times the bytes of the file that its tensors may take; two can share what is stored

_FOREIGN = re.compile(r"Unsupported (?:global|class)[^.]*?([\w.]+) was not")


class Inert:
    """Stands for a class of a training framework that old checkpoints name; it does nothing."""

    def __init__(self, *ignored: object) -> None: ...

    def __setstate__(self, ignored: object) -> None: ...


_INERT: Final = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
"""Source: ``sd-v1-4.ckpt``, which has it as a key among its callbacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpickled:
    """What was written: where, how many tensors, and how many entries that are none were left out."""

    out: Path
    tensors: int
    left_out: tuple[str, ...] = ()


def unpickle_checkpoint(path: Path, out: Path, *, overwrite: bool = False) -> Unpickled:
    """Write the tensors of a pickle as a safetensors file, under their keys and in their types.

    Args:
        path: A pickle as torch 1.6 and later write it. A table under ``state_dict`` is taken in place of the
            one around it.
        out: The new file.
        overwrite: Allow an older safetensors file at ``out`` to be replaced.

    Raises:
        CheckpointError: when the pickle asks for more than tensors, or is damaged. Nothing in it was run.
    """
    refuse_overlap(path, out)
    refuse_foreign(out, "single")
    if path.suffix.lower() not in PICKLES:
        raise CheckpointError(
            f"{path} is no pickle by its name; one of {', '.join(sorted(PICKLES))} was expected. "
            "Leave --allow-pickle out."
        )
    table, left_out = _tensors_in(_loaded(path), path)
    written: dict[str, Written] = {
        key: Lazy(dtype=tensor.dtype, shape=tuple(tensor.shape), make=partial(_whole, tensor))
        for key, tensor in table.items()
    }
    with atomic_file(out, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(written, {"format": "pt"}))
    return Unpickled(out=out, tensors=len(written), left_out=left_out)


def _loaded(path: Path) -> Any:
    """What the reader of weights alone makes of the pickle."""
    try:
        _refuse_archive(path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} {error}; a pickle as torch 1.6 and later write it was expected. Nothing in it was run. "
            "Take the safetensors of the same model."
        ) from error
    try:
        with safe_globals([(Inert, name) for name in _INERT]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a false pickle makes the reader stumble in every way there is
        named = _FOREIGN.search(str(error))
        reason = f"asks for {named[1]}" if named else f"cannot be read ({brief(str(error))})"
        raise CheckpointError(
            f"{path} {reason}; tensors and plain tables alone were expected. Nothing in it was run. "
            "Take the safetensors of the same model."
        ) from error


def _refuse_archive(path: Path) -> None:
    """Refuse an archive that unfolds to more than it is.

    Raises:
        ValueError: continuing "<path> ".
    """
    size = regular_size(path)
    if not zipfile.is_zipfile(path):
        raise ValueError("is no zip archive")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("is packed, which torch does not do")
    if sum(part.file_size for part in parts) > size:
        raise ValueError("has parts that lie over each other")
    tables = [part.file_size for part in parts if part.filename.endswith("data.pkl")]
    if len(tables) != 1 or tables[0] > _LARGEST_TABLE:
        raise ValueError(f"has {len(tables)} tables of contents, or one over {_LARGEST_TABLE} bytes")


def _tensors_in(loaded: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the outermost table, or of its ``state_dict``, each no larger than what is stored."""
    table = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    entries = dict(table) if isinstance(table, Mapping) else {}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no table of tensors; the state of a model was expected. Is it something else?"
        )
    faults = [
        f"{path}: tensor {brief(key)} {fault}"
        for key, value in tensors.items()
        for fault in _faults(key, value)
    ]
    raise_all(CheckpointError, faults)
    total, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if total > _STORED * size:
        raise CheckpointError(
            f"{path} takes {size} bytes, its tensors would take {total}; up to {_STORED} times as much was "
            "expected. Was it tampered with?"
        )
    surplus = len(entries) - len(tensors) + (len(loaded) - 1 if table is not loaded else 0)
    left_out = (f"{surplus} entries that are no weights",) if surplus else ()
    return {key: tensor.detach() for key, tensor in tensors.items()}, left_out


def _faults(key: object, tensor: Tensor) -> list[str]:
    """What keeps a tensor out of a safetensors file; each continues "tensor <key> "."""
    faults = []
    if not isinstance(key, str) or not key.isprintable() or not 0 < len(key) <= LONGEST_KEY:
        faults.append(f"has no printable text of up to {LONGEST_KEY} letters as its name")
    if tensor.layout != torch.strided or tensor.dtype not in DTYPE_NAMES or tensor.device.type != "cpu":
        faults.append(f"is a {tensor.layout} tensor of {tensor.dtype}; plain numbers were expected")
    elif tensor.nbytes > min(TENSOR_LIMIT, tensor.untyped_storage().nbytes()):
        faults.append(f"says it takes {tensor.nbytes} bytes, and less is stored; was it tampered with?")
    return faults


def _whole(tensor: Tensor) -> Tensor:
    return tensor.contiguous()
