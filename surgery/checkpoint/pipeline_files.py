"""The small files of a pipeline (configurations, scheduler, tokenizer, README) as a table of texts.

In that form they travel in the metadata of the single files written here. A table that comes from a file is
trusted in nothing: no path in it may leave the folder, or name weights.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from surgery.checkpoint.header import Header
from surgery.checkpoint.keymap import WEIGHT_STEMS
from surgery.checkpoint.texts import parse_json, read_small
from surgery.checkpoint.weights import WEIGHT_SUFFIXES
from surgery.errors import CheckpointError

FILES_KEY: Final = "surgery.pipeline_files"
"""Metadata of single files written here: a JSON table from paths in the folder to texts."""

INDEX: Final = "model_index.json"
_LARGEST: Final = 2_000_000  # bytes; CLIP's vocabulary takes 862,328
_FOLDERS: Final = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor", *WEIGHT_STEMS)
_BESIDE: Final = re.compile(r"[A-Za-z0-9][\w-]*\.(?:md|txt|json)|LICENSE|NOTICE", re.ASCII)
"""What else of a folder goes along: the README, the licence, lists of words."""


_SHARDS: Final = re.compile(r"\.safetensors\.index(\.[^.]+)?\.json$")


def pipeline_files(folder: Path) -> dict[str, str]:
    """The small files of a folder: texts by path in the folder.

    A component that cannot travel, such as a safety checker, is taken out of the index.

    Raises:
        CheckpointError: when a file that the pipeline needs is no text, or too large to be one.
    """
    found = {INDEX: folder / INDEX}
    for name in _FOLDERS:
        inside = sorted((folder / name).glob("*")) if (folder / name).is_dir() else []
        found |= {f"{name}/{file.name}": file for file in inside if file.is_file() and not _is_weights(file)}
    texts = {path: _text(file) for path, file in found.items()}
    texts[INDEX] = _without(texts[INDEX], lost_components(folder))
    for file in sorted(folder.iterdir()):
        if file.name != INDEX and _BESIDE.fullmatch(file.name) and file.is_file():
            try:
                texts[file.name] = read_small(file, _LARGEST)
            except ValueError:  # the pipeline does not need it
                continue
    return texts


def lost_components(folder: Path) -> list[str]:
    """Components of a folder that a single file has no place for, such as a safety checker."""
    index = index_of({INDEX: _text(folder / INDEX)}, folder)
    return sorted(named_components(index) - set(_FOLDERS))


def named_components(index: Mapping[str, Any]) -> set[str]:
    """The components that an index names a class for."""
    return {
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    }


def _without(text: str, components: list[str]) -> str:
    """The index as it is, or written anew where a component is taken out."""
    if not components:
        return text
    index = json.loads(text) | {name: [None, None] for name in components}
    if "safety_checker" in components:
        index["requires_safety_checker"] = False
    return json.dumps(index, indent=2) + "\n"


def known_files(path: Path, header: Header) -> Mapping[str, str]:
    """The pipeline files in a single file's metadata, nothing of them trusted.

    Raises:
        CheckpointError: when they are no table of texts, or name files outside of a pipeline's folders.
    """
    try:
        files = parse_json(header.metadata[FILES_KEY])
    except ValueError as error:
        raise CheckpointError(
            f"{path}: its metadata {FILES_KEY!r} {error}; a table of texts was expected. It was not "
            "written by this program; name a folder instead (--like)."
        ) from error
    texts = files if isinstance(files, dict) else {}
    if not texts or not all(isinstance(text, str) and _is_ours(name) for name, text in texts.items()):
        raise CheckpointError(
            f"{path}: its metadata {FILES_KEY!r} names files outside of a pipeline's folders, or "
            "is no table of texts. It was not written by this program; name a folder instead (--like)."
        )
    try:
        "".join(texts.values()).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path}: its metadata {FILES_KEY!r} holds what is no text ({error.reason}); UTF-8 was expected. "
            "Name a folder instead (--like)."
        ) from error
    return texts


def index_of(files: Mapping[str, str], source: Path) -> Mapping[str, Any]:
    """The index among the small files of a pipeline.

    Raises:
        CheckpointError: when it is missing or no table.
    """
    try:
        index = parse_json(files[INDEX])
    except KeyError as error:
        raise CheckpointError(f"{source} has no {INDEX}; a diffusers folder was expected.") from error
    except ValueError as error:
        raise CheckpointError(f"{source}: its {INDEX} {error}; a table was expected.") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{source}: {INDEX} is no table. Fetch it again.")
    return index


def _is_weights(file: Path) -> bool:
    return file.suffix in WEIGHT_SUFFIXES or _SHARDS.search(file.name) is not None


def _text(file: Path) -> str:
    try:
        return read_small(file, _LARGEST)
    except ValueError as error:
        raise CheckpointError(
            f"{file} cannot travel in a single file (it {error}); expected a small text. Is the folder whole?"
        ) from error


def _is_ours(path: str) -> bool:
    """Whether a path is that of a pipeline's small file, and no way out of the folder."""
    folder, slash, name = path.partition("/")
    if not slash:
        return _BESIDE.fullmatch(path) is not None
    plain = name.isprintable() and not set(name) & set('/\\:*?"<>|') and name not in (".", "..")
    return folder in _FOLDERS and 0 < len(name) <= 200 and plain and not _is_weights(Path(name))
