"""A single file from a folder's tensors, or from another single file without its averaged copy."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from surgery.checkpoint.atomic import Bytes, atomic_file, write_bytes
from surgery.checkpoint.digest import byte_digests
from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.ldm import (
    AVERAGED_PREFIX,
    UNET_PREFIX,
    Place,
    averaged_key,
    places_of_names,
)
from surgery.checkpoint.leftovers import UNUSED
from surgery.checkpoint.notes import metadata_of_notes
from surgery.checkpoint.pipeline_files import FILES_KEY, lost_components, pipeline_files
from surgery.checkpoint.reader import read_chunks, read_tensor
from surgery.checkpoint.serialise import Copied, Lazy, Written, copied, safetensors_chunks
from surgery.checkpoint.writer import write_checkpoint
from surgery.errors import CheckpointError, raise_all

_HASHES: Final = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
"""Metadata that say what the bytes of a file are, and are wrong in any other."""


def folder_to_single(checkpoint: Checkpoint, out: Path, overwrite: bool) -> tuple[str, ...]:
    """Write a folder's tensors as a single file; what is left out comes back, in words.

    Raises:
        CheckpointError: when a tensor has no place in a single file.
    """
    places = places_of_names(checkpoint.shapes)
    raise_all(
        CheckpointError,
        [
            f"tensor {name!r} of {checkpoint.path} has no place in a single file of Stable Diffusion 1.x, "
            "2.x or XL. Is it another kind of model?"
            for name in checkpoint.tensors.keys() - places.keys()
        ],
    )
    parts: dict[str, list[tuple[Place, TensorEntry]]] = {}
    for name, place in places.items():
        parts.setdefault(place.key, []).append((place, checkpoint.tensors[name]))
    tensors = {key: _joined(key, sorted(found, key=_part)) for key, found in parts.items()}
    files = json.dumps(pipeline_files(checkpoint.path), ensure_ascii=False, sort_keys=True)
    metadata = {"format": "pt", FILES_KEY: files, **metadata_of_notes(checkpoint.notes)}
    with atomic_file(out, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata))
    lost = [f"the component {name!r} of the folder" for name in lost_components(checkpoint.path)]
    return (*lost, *_unused(checkpoint))


def folder_into_single(checkpoint: Checkpoint, like: Checkpoint, out: Path, overwrite: bool) -> None:
    """Write the single file ``like`` with a folder's weights in place of its own.

    All else of it stays: the order of its keys, its metadata, and tensors that a folder has no place for.

    Raises:
        CheckpointError: when the two hold other tensors, shapes or types; or when ``like`` carries an
            averaged copy of another U-Net than the folder's.
    """
    faults = [
        f"tensor {name!r} is in {(here if name in here.tensors else there).path} alone; both must be of one "
        "model. Leave --like out for a file of the folder's tensors alone."
        for name in sorted(checkpoint.tensors.keys() ^ like.tensors.keys())
        for here, there in [(checkpoint, like)]
    ]
    for name in sorted(checkpoint.tensors.keys() & like.tensors.keys()):
        mine, theirs = checkpoint.tensors[name], like.tensors[name]
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            faults.append(
                f"tensor {name!r} is {mine.dtype} of shape {mine.shape} in {checkpoint.path} and "
                f"{theirs.dtype} of {theirs.shape} in {like.path}; the same was expected."
            )
    raise_all(CheckpointError, faults)
    if like.averaged and not _same_unet(checkpoint, like):
        raise CheckpointError(
            f"{like.path} carries an averaged copy of its U-Net, which would be another than that of "
            f"{checkpoint.path}; a file without one was expected. Write one with --averaged drop first."
        )
    write_checkpoint(
        like,
        out,
        {name: partial(read_tensor, entry) for name, entry in checkpoint.tensors.items()},
        overwrite=overwrite,
    )


def without_averaged(checkpoint: Checkpoint, out: Path, *, take: bool, overwrite: bool) -> None:
    """Write a single file without the averaged copy of its U-Net.

    Args:
        checkpoint: A single file that carries one.
        out: The new file.
        take: Whether the copy takes the place of the U-Net's weights.
        overwrite: Allow an older file to be replaced.
    """
    header = checkpoint.headers[checkpoint.path]
    entries = {entry.key: entry for entry in header.entries}
    tensors: dict[str, Written] = {}
    for key, entry in entries.items():
        if not key.startswith(AVERAGED_PREFIX):
            taken = entries.get(averaged_key(key)) if take and key.startswith(UNET_PREFIX) else None
            tensors[key] = copied(taken or entry)
    metadata = {key: text for key, text in header.metadata.items() if key not in _HASHES}
    with atomic_file(out, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, {"format": "pt", **metadata}))


def _unused(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Single files of SD 2.x have parts of the text encoder that no folder holds."""
    if checkpoint.architecture != "stable-diffusion-v2" or "text_encoder" not in checkpoint.weights:
        return ()
    return (f"{UNUSED}: the folder has none (--like FILE takes them from a single file)",)


def _same_unet(checkpoint: Checkpoint, like: Checkpoint) -> bool:
    mine, theirs = (
        byte_digests({name: entry for name, entry in tensors.items() if name.startswith("unet/")})
        for tensors in (checkpoint.tensors, like.tensors)
    )
    return mine == theirs


def _part(found: tuple[Place, TensorEntry]) -> int:
    return found[0].part


def _joined(key: str, found: list[tuple[Place, TensorEntry]]) -> Written:
    """One tensor of the file out of the canonical tensors that lie in it."""
    place, first = found[0]
    if len(found) != place.parts or len({(entry.dtype, entry.shape) for _, entry in found}) > 1:
        raise CheckpointError(
            f"{first.file}: the single file keeps {place.parts} tensors in {key!r}; found {len(found)}, or "
            "of different types. Cast the text encoder to one type first."
        )
    shape = (first.shape[0] * place.parts, *first.shape[1:]) if place.parts > 1 else first.shape
    shape = (*shape, 1, 1) if place.pixel else shape
    if place.transposed:
        return Lazy(dtype=first.dtype, shape=shape[::-1], make=partial(_transposed, first))
    chunks = partial(_chunks, [entry for _, entry in found])
    return Copied(dtype=first.dtype, shape=shape, chunks=chunks)


def _transposed(entry: TensorEntry) -> Tensor:
    return read_tensor(entry).T.contiguous()


def _chunks(entries: list[TensorEntry]) -> Iterator[Bytes]:
    for entry in entries:
        yield from read_chunks(entry.file, entry.start, entry.end, entry.stamp)
