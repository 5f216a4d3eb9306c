"""A copy of a checkpoint with some tensors replaced, streamed into the input's own layout.

Headers are copied, not written anew: key order, alignment and metadata stay, and a file in which nothing is
replaced comes out byte for byte.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.atomic import Bytes, atomic_file, atomic_folder, make_folder, write_bytes
from surgery.checkpoint.digest import tensor_bytes
from surgery.checkpoint.header import Stamp, TensorEntry, read_header
from surgery.checkpoint.layout import Checkpoint, Layout
from surgery.checkpoint.reader import CHUNK_BYTES, read_chunks
from surgery.checkpoint.texts import regular_size
from surgery.errors import CheckpointError, raise_all
from surgery.threads import ahead

_log = logging.getLogger(__name__)

Make = Callable[[], Tensor | Iterator[Tensor]]
Replacements = Mapping[str, Make]
"""By canonical name, what makes the new tensor when its turn comes, whole or in blocks of rows."""

_WEIGHTS: Final = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_HASH: Final = "modelspec.hash_sha256"
_AHEAD: Final = 32  # pieces of `CHUNK_BYTES` that replacements may be made ahead of the disk


def write_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    replacements: Replacements,
    *,
    without: Collection[Path] = (),
    overwrite: bool = False,
) -> None:
    """Write a copy of ``checkpoint`` to ``out``.

    Memory is bounded by the largest block that a replacement makes. Nothing stands under ``out`` before all
    is on disk.

    Args:
        checkpoint: What to copy, with every file of its folder.
        out: The new folder, or the new file of a checkpoint that is one.
        replacements: By canonical name, what makes the new tensor when its turn comes.
        without: Files of a folder that the copy lacks.
        overwrite: Allow an existing ``out`` to be replaced.

    Raises:
        CheckpointError: for an unknown name, another shape or type, an ``out`` that meets the input or holds
            something other than a checkpoint, or an input that changed since it was opened.
    """
    refuse_overlap(checkpoint.path, out)
    refuse_foreign(out, checkpoint.layout)
    in_file: dict[Path, list[tuple[TensorEntry, Make]]] = {}
    for name, make in replacements.items():
        entry = checkpoint.entry(name)
        in_file.setdefault(entry.file, []).append((entry, make))
    _warn_of_hashes(checkpoint, in_file)
    _warn_of_copies(checkpoint, in_file)
    stamps = {path: header.stamp for path, header in checkpoint.headers.items()}
    if checkpoint.layout == "single":
        with atomic_file(out, overwrite=overwrite) as temporary:
            write_bytes(temporary, _chunks(checkpoint.path, in_file.get(checkpoint.path, []), stamps))
        return
    with atomic_folder(out, overwrite=overwrite) as temporary:
        for file in _files(checkpoint.path):
            if file in without:
                continue
            target = temporary / file.relative_to(checkpoint.path)
            make_folder(target.parent)
            write_bytes(target, _chunks(file, in_file.pop(file, []), stamps))
        raise_all(
            CheckpointError, [f"{file} was not found again; {checkpoint.path} changed." for file in in_file]
        )


def refuse_foreign(out: Path, layout: Layout) -> None:
    """Never replace what is no checkpoint of the same layout, also not when asked to overwrite.

    Raises:
        CheckpointError: when ``out`` is a file instead of a folder or the other way round, or holds
            something else.
    """
    if not out.exists():
        return
    if layout == "single":
        if out.is_file() and read_header(out)[0] is not None:
            return
        what = "a folder" if out.is_dir() else "no safetensors file"
        raise CheckpointError(f"{out} is {what}; expected a new name or an older file. Name another one.")
    if (out / "model_index.json").is_file() or (out.is_dir() and not any(out.iterdir())):
        return
    what = "a folder of other files" if out.is_dir() else "a file"
    raise CheckpointError(
        f"{out} is {what}; expected a new name, an empty folder or an older checkpoint. Name another one."
    )


def _chunks(
    file: Path, replaced: list[tuple[TensorEntry, Make]], stamps: Mapping[Path, Stamp]
) -> Iterator[Bytes]:
    """The bytes of ``file`` with some ranges replaced."""
    try:
        size, stamp = regular_size(file), stamps.get(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be copied ({error}); regular files were expected in a checkpoint. Remove it."
        ) from error
    position = 0
    ordered = sorted(replaced, key=lambda pair: pair[0].start)
    with closing(ahead(_made(ordered), _AHEAD)) as made:  # computed while the disk is busy with the rest
        for entry, _ in ordered:
            yield from read_chunks(file, position, entry.start, stamp)
            yield from takewhile(len, made)
            position = entry.end
    yield from read_chunks(file, position, stamp.size if stamp else size, stamp)


def _made(replaced: Iterable[tuple[TensorEntry, Make]]) -> Iterator[Bytes]:
    """The bytes of each replacement in pieces; an empty one ends each."""
    for entry, make in replaced:
        for data in _replaced(entry, make()):
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]
        yield b""


def _warn_of_hashes(checkpoint: Checkpoint, replaced: Collection[Path]) -> None:
    """A header is kept to the byte, so that reverting gives the very file; a hash in it stays the base's."""
    for path in replaced:
        if _HASH in checkpoint.headers[path].metadata:
            _log.warning("%s says its own hash (%s), which the copy keeps; it is the base's.", path, _HASH)


def _replaced(entry: TensorEntry, made: Tensor | Iterator[Tensor]) -> Iterator[Bytes]:
    """The bytes of a replacement; of blocks, as they come."""
    if not isinstance(made, Tensor) and (entry.transposed or not entry.shape):
        blocks = list(made)
        made = torch.cat(blocks) if entry.shape else blocks[0]
    if isinstance(made, Tensor):
        _refuse_misfit(entry, made.dtype, tuple(made.shape))
        yield tensor_bytes(made.T.contiguous() if entry.transposed else made.contiguous())
        return
    rows = 0
    for block in made:
        rows += len(block)
        _refuse_misfit(entry, block.dtype, (max(rows, entry.shape[0]), *block.shape[1:]))
        yield tensor_bytes(block.contiguous())
    if rows != entry.shape[0]:
        _refuse_misfit(entry, entry.dtype, (rows, *entry.shape[1:]))


def _refuse_misfit(entry: TensorEntry, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if dtype != entry.dtype or shape != entry.shape:
        raise CheckpointError(
            f"tensor {entry.key!r} of {entry.file} has shape {entry.shape} and type {entry.dtype}; "
            f"its replacement has {shape} and {dtype}."
        )


def _warn_of_copies(checkpoint: Checkpoint, changed: Collection[Path]) -> None:
    """Whole models that lie in a folder beside its components stay as they are, for whoever loads them."""
    if checkpoint.layout == "folder" and changed:
        for file in sorted(checkpoint.path.iterdir()):
            if file.suffix.lower() in _WEIGHTS and file.is_file():
                _log.warning("%s is no part of the folder's pipeline; it is copied without the change", file)


def _files(folder: Path) -> Iterator[Path]:
    """Every file of a folder in a fixed order, through links to folders too."""
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        place = Path(root)
        above = {parent.resolve() for parent in place.parents if parent.is_relative_to(folder)}
        if place.resolve() in above:  # a link back to where it lies
            folders.clear()
            continue
        folders.sort()
        yield from (place / name for name in sorted(files))


def _refuse(error: OSError) -> None:
    raise CheckpointError(
        f"cannot look into {error.filename} ({error.strerror}); a readable folder was expected."
    ) from error


def refuse_overlap(source: Path, out: Path) -> None:
    """Refuse an output that is the input, lies in it, or holds it.

    Raises:
        CheckpointError: naming both.
    """
    try:
        inner, outer = source.resolve(), out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null in a name
        raise CheckpointError(
            f"the output {out} or the input {source} leads nowhere ({error}); two paths were expected."
        ) from error
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise CheckpointError(
            f"the output {out} and the input {source} lie inside each other; the input is never written to. "
            "Choose an output elsewhere."
        )
