"""CLIP's vocabulary, which single files lack: looked for where people have it, never downloaded."""

import gzip
import json
import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from surgery.checkpoint.texts import parse_json, read_small
from surgery.errors import CheckpointError

_log = logging.getLogger(__name__)

SIZE: Final = 49408
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PACKED: Final = "bpe_simple_vocab_16e6.txt.gz"


def find_vocabulary(given: Path | None, checkpoint: Path) -> dict[str, str]:
    """``vocab.json`` and ``merges.txt`` as texts.

    Looked for in the folder that was given (or its ``tokenizer``) alone; without one, beside the checkpoint,
    in the local hub cache, and in installed packages that carry the list of merges (open_clip, clip).

    Raises:
        CheckpointError: when it is nowhere, or the given folder does not hold it; naming all places.
    """
    tried: list[Path] = []
    for folder in _folders(given, checkpoint):
        tried.append(folder)
        found = _read(folder)
        if found is not None:
            _log.info("CLIP's vocabulary is taken from %s", folder)
            return found
    if given is None:
        for packed in _packages():
            tried.append(packed)
            if packed.is_file():
                _log.info("CLIP's vocabulary is made from %s", packed)
                return vocabulary_of_merges(gzip.decompress(packed.read_bytes()).decode("utf-8"))
    places = "\n  ".join(str(place) for place in tried)
    raise CheckpointError(
        f"CLIP's vocabulary (vocab.json and merges.txt with {SIZE} tokens) was not found in\n  {places}\n"
        "Name a folder that has it, such as the tokenizer of any Stable Diffusion (--tokenizer)."
    )


def vocabulary_of_merges(text: str) -> dict[str, str]:
    """Both files from the list of merges as OpenAI published it: a line of version, then merges in order.

    Source: Radford et al. 2021; the order of ``SimpleTokenizer`` in ``openai/CLIP``: bytes, bytes at the end
    of a word, merges, start, end.
    """
    merges = text.splitlines()[1 : SIZE - 512 - 2 + 1]
    letters = byte_letters()
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(merge.split()) for merge in merges),
    ]
    vocabulary = {word: number for number, word in enumerate([*words, _START, _END])}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }


def byte_letters() -> list[str]:
    """A letter for each of the 256 bytes, printable ones first. Source: GPT-2's ``bytes_to_unicode``."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + number) for number in range(others)]


def _folders(given: Path | None, checkpoint: Path) -> Iterator[Path]:
    if given is not None:
        if (given / "tokenizer").is_dir():
            given = given / "tokenizer"
        yield given
        return
    beside = checkpoint if checkpoint.is_dir() else checkpoint.parent
    yield from (beside, beside / "tokenizer", beside / "clip-tokenizer")
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    for pattern in ("models--*/snapshots/*/vocab.json", "models--*/snapshots/*/tokenizer/vocab.json"):
        yield from (path.parent for path in sorted(hub.glob(pattern)))


def _packages() -> Iterator[Path]:
    for package in ("open_clip", "clip"):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder) / _PACKED


def _read(folder: Path) -> dict[str, str] | None:
    """The two files when they are CLIP's; None for other vocabularies and unreadable ones."""
    try:
        vocabulary, merges = read_small(folder / "vocab.json"), read_small(folder / "merges.txt")
        table = parse_json(vocabulary)
    except ValueError:
        return None
    if not isinstance(table, dict) or len(table) != SIZE or table.get(_END) != SIZE - 1:
        return None
    return {"vocab.json": vocabulary, "merges.txt": merges}
