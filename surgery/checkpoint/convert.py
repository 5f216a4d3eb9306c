"""A checkpoint from one layout into the other: diffusers folder to single file and back, tensor by tensor.

A single file holds weights alone. So that a folder survives the way there and back, the small files of the
pipeline (configurations, scheduler, tokenizer) travel in the metadata of the files written here.
"""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from surgery.checkpoint.atomic import atomic_file, atomic_folder, make_folder, write_bytes
from surgery.checkpoint.families import family_files, family_of
from surgery.checkpoint.header import Header, TensorEntry
from surgery.checkpoint.keymap import WEIGHT_STEMS
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.ldm import Place, places_of_names
from surgery.checkpoint.reader import read_tensor
from surgery.checkpoint.serialise import Lazy, safetensors_chunks
from surgery.checkpoint.vocabulary import find_vocabulary
from surgery.checkpoint.weights import WEIGHT_SUFFIXES
from surgery.checkpoint.writer import refuse_foreign, refuse_overlap
from surgery.errors import CheckpointError, raise_all
from surgery.names import split

_log = logging.getLogger(__name__)

FILES_KEY: Final = "surgery.pipeline_files"
"""Metadata of single files written here: a JSON table from paths in the folder to texts."""

_TELLING: Final = "unet/up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
_TELLING_SPREAD: Final = 0.09
_LARGEST_FILE: Final = 2_000_000  # bytes; CLIP's vocabulary takes 862,328
_PIPELINE_FOLDERS: Final = ("scheduler", "tokenizer", "tokenizer_2", *WEIGHT_STEMS)


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    like: Path | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``checkpoint`` in the other layout to ``out``; values, shapes and types stay as they are.

    Args:
        checkpoint: A folder becomes a single file, a single file becomes a folder.
        out: The new file or folder.
        like: A folder of the same model, whose configurations and tokenizer the new folder gets; not needed
            for the published families, nor for single files that were written here.
        tokenizer: A folder with CLIP's vocabulary, for a published family; looked for when left out.
        overwrite: Allow an older checkpoint at ``out`` to be replaced.

    Raises:
        CheckpointError: when a tensor has no place in the other layout, or nothing says how the folder's
            models are built.
    """
    refuse_overlap(checkpoint.path, out)
    if checkpoint.layout == "folder":
        refuse_foreign(out, "single")
        _to_single(checkpoint, out, overwrite)
    else:
        refuse_foreign(out, "folder")
        files = files_of(checkpoint, tokenizer) if like is None else pipeline_files(like)
        _to_folder(checkpoint, out, files, overwrite)


def _to_single(checkpoint: Checkpoint, out: Path, overwrite: bool) -> None:
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
    metadata = {"format": "pt", FILES_KEY: json.dumps(pipeline_files(checkpoint.path), ensure_ascii=False)}
    with atomic_file(out, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata))


def _part(found: tuple[Place, TensorEntry]) -> int:
    return found[0].part


def _joined(key: str, found: list[tuple[Place, TensorEntry]]) -> Lazy:
    """One tensor of the file out of the canonical tensors that lie in it."""
    place, first = found[0]
    if len(found) != place.parts or len({(entry.dtype, entry.shape) for _, entry in found}) > 1:
        raise CheckpointError(
            f"{first.file}: the single file keeps {place.parts} tensors in {key!r}; found {len(found)}, or "
            "of different types. Cast the text encoder to one type first."
        )
    shape = (first.shape[0] * place.parts, *first.shape[1:])
    shape = (*shape, 1, 1) if place.pixel else shape
    shape = shape[::-1] if place.transposed else shape
    entries = [entry for _, entry in found]
    return Lazy(dtype=first.dtype, shape=shape, make=partial(_made, entries, shape, place.transposed))


def _made(entries: list[TensorEntry], shape: tuple[int, ...], transposed: bool) -> Tensor:
    tensors = [read_tensor(entry) for entry in entries]
    whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return whole.T.contiguous() if transposed else whole.reshape(shape)


def pipeline_files(folder: Path) -> dict[str, str]:
    """The small files that say how a folder's models are built: texts by path in the folder.

    Raises:
        CheckpointError: when one of them is no text, or too large to be one.
    """
    found = [folder / "model_index.json"]
    for name in _PIPELINE_FOLDERS:
        inside = sorted((folder / name).glob("*")) if (folder / name).is_dir() else []
        found += [file for file in inside if file.is_file() and not _is_weights(file)]
    return {file.relative_to(folder).as_posix(): _text(file) for file in found}


def _is_weights(file: Path) -> bool:
    return file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".safetensors.index.json")


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it takes {file.stat().st_size} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot travel in a single file ({error}); expected a small text."
        ) from error


def _to_folder(checkpoint: Checkpoint, out: Path, files: Mapping[str, str], overwrite: bool) -> None:
    index = _index(files, checkpoint.path)
    components = sorted({split(name)[0] for name in checkpoint.tensors})
    raise_all(
        CheckpointError,
        [
            f"{checkpoint.path} holds a {name}, which the configurations do not. Are they of the same family?"
            for name in components
            if not index.get(name)
        ],
    )
    with atomic_folder(out, overwrite=overwrite) as temporary:
        for path, text in files.items():
            make_folder((temporary / path).parent)
            write_bytes(temporary / path, [text.encode()])
        for component in components:
            tensors = {
                split(name)[1]: Lazy(dtype=entry.dtype, shape=entry.shape, make=partial(read_tensor, entry))
                for name, entry in checkpoint.tensors.items()
                if split(name)[0] == component
            }
            make_folder(temporary / component)
            file = temporary / component / f"{WEIGHT_STEMS[component]}.safetensors"
            write_bytes(file, safetensors_chunks(tensors, {"format": "pt"}))


def files_of(checkpoint: Checkpoint, tokenizer: Path | None = None) -> Mapping[str, str]:
    """The small files of a single file's pipeline: out of its metadata, else those of its published family.

    Raises:
        CheckpointError: when its widths are no published ones and it does not say how its models are built,
            or when CLIP's vocabulary is not found.
    """
    (header,) = checkpoint.headers.values()
    if FILES_KEY in header.metadata:
        return _known_files(checkpoint.path, header)
    velocity = _predicts_velocity(checkpoint)
    family = family_of(checkpoint.architecture, checkpoint.shapes, velocity)
    if family is None:
        raise CheckpointError(
            f"{checkpoint.path} has other widths than Stable Diffusion 1.x, 2.x and XL and does not say how "
            "its models are built; expected a folder of the same model for its configurations and tokenizer. "
            "Name one (--like)."
        )
    return family_files(family, find_vocabulary(tokenizer, checkpoint.path))


def _predicts_velocity(checkpoint: Checkpoint) -> bool:
    """What an SD 2.x predicts is not in the keys; told from a bias that is larger in those of the velocity.

    Source: ComfyUI's ``model_config``, the same tensor and the same bound.
    """
    if checkpoint.architecture != "stable-diffusion-v2" or _TELLING not in checkpoint.tensors:
        return False
    velocity = float(checkpoint.read(_TELLING).float().std(correction=0)) > _TELLING_SPREAD
    _log.info("taken for a model of the %s, by the spread of a bias", "velocity" if velocity else "noise")
    return velocity


def _known_files(path: Path, header: Header) -> Mapping[str, str]:
    """The pipeline files in a single file's metadata, nothing of them trusted."""
    try:
        files = json.loads(header.metadata[FILES_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata {FILES_KEY!r} is no JSON ({error}).") from error
    texts = files if isinstance(files, dict) else {}
    if not texts or not all(isinstance(text, str) and _is_ours(path) for path, text in texts.items()):
        raise CheckpointError(
            f"{path}: its metadata {FILES_KEY!r} names files outside of a pipeline's folders, or "
            "is no table of texts. It was not written by this program; name a folder instead (--like)."
        )
    return texts


def _is_ours(path: str) -> bool:
    """Whether a path is that of a pipeline's small file, and no way out of the folder."""
    folder, slash, name = path.partition("/")
    if not slash:
        return path == "model_index.json"
    plain = name.isprintable() and not set(name) & set('/\\:*?"<>|') and name not in (".", "..")
    return folder in _PIPELINE_FOLDERS and bool(name) and plain and not _is_weights(Path(name))


def _index(files: Mapping[str, str], source: Path) -> Mapping[str, Any]:
    try:
        index = json.loads(files["model_index.json"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} has no readable model_index.json ({error!r}).") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{source}: model_index.json is no table. Fetch it again.")
    return index
