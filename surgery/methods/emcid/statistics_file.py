"""Key statistics as a file: collected once, where a large machine is at hand, and used anywhere.

One safetensors file. Each layer of each text encoder is a tensor ``<component>/<block>``, for example
``text_encoder/10``: the lower triangle of E[k kᵀ], row by row, diagonal included, in float32 (width·(width +
1)/2 numbers: 18.9 MB at width 3072). The header's metadata:

| key | value |
|---|---|
| ``sdstatistics.version`` | ``1`` |
| ``sdstatistics.encoders`` | JSON by component: ``encoder`` and ``corpus`` (sha256 of the encoder's weights and of the tokenised captions), ``tokens``, ``words`` (tokens without padding), ``captions``, ``includes_bos``, ``includes_padding``, ``word_weight`` |
| ``sdstatistics.content`` | sha256 of the two texts above and of all tensors |
| ``format`` | ``pt`` |
"""  # noqa: E501 - a table's row is one line

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from surgery.anatomy import tensor_bytes
from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.header import open_header
from surgery.checkpoint.reader import read_tensor
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.checkpoint.texts import parse_json
from surgery.errors import MethodError, NumericsError, raise_all
from surgery.methods.emcid.statistics import KeyStatistics
from surgery.numerics import unpack
from surgery.record import canonical_json

_VERSION: Final = "1"
_NAME: Final = "sdstatistics"
_TEXTS: Final = (f"{_NAME}.encoders", f"{_NAME}.version")
_FIELDS: Final = {
    "encoder": "encoder_digest",
    "corpus": "corpus_digest",
    "tokens": "token_count",
    "words": "word_count",
    "captions": "caption_count",
    "includes_bos": "includes_bos",
    "includes_padding": "includes_padding",
    "word_weight": "word_weight",
}


def save_statistics(statistics: Mapping[str, KeyStatistics], path: Path, *, overwrite: bool = False) -> None:
    """Write the statistics of one or both text encoders (by component) as one file; equal ones equal bytes.

    The shrinkage is no part of them: whoever uses them chooses it.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set, or the disk refuses.
    """
    tensors = {
        f"{component}/{layer}": moment
        for component, found in statistics.items()
        for layer, moment in found.moments.items()
    }
    encoders = {
        component: {word: getattr(found, name) for word, name in _FIELDS.items()}
        for component, found in statistics.items()
    }
    texts = {f"{_NAME}.version": _VERSION, f"{_NAME}.encoders": canonical_json(encoders)}
    metadata = {"format": "pt", **texts, f"{_NAME}.content": content_of(texts, tensors)}
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata))


def load_statistics(path: Path, *, shrinkage: float = 0.0) -> dict[str, KeyStatistics]:
    """The statistics in a file, by component of the text encoder, checked through and through.

    Args:
        path: What ``save_statistics`` wrote.
        shrinkage: As in ``CorpusSettings``.

    Raises:
        MethodError: when the file is no such file, of another version, or damaged.
    """
    header = open_header(path, MethodError)
    version = header.metadata.get(f"{_NAME}.version")
    if version != _VERSION:
        what = "no key statistics" if version is None else f"key statistics of version {version!r}"
        raise MethodError(
            f"{path} holds {what}; version {_VERSION!r} was expected. `surgery statistics` writes it."
        )
    tensors = {entry.key: read_tensor(entry) for entry in header.entries}
    texts = {key: header.metadata.get(key, "") for key in _TEXTS}
    if header.metadata.get(f"{_NAME}.content") != content_of(texts, tensors):
        raise MethodError(f"{path} is damaged: its content has another digest. Fetch it again.")
    try:
        encoders = parse_json(texts[f"{_NAME}.encoders"])
        found = {
            component: _read(component, told, tensors, shrinkage) for component, told in encoders.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MethodError(f"{path} does not describe key statistics ({error!r}). Write it again.") from error
    raise_all(MethodError, [f"{path}: {fault}" for fault in _faults(found)])
    return found


def _read(component: str, told: Any, tensors: Mapping[str, Tensor], shrinkage: float) -> KeyStatistics:
    moments = {
        int(key.rpartition("/")[2]): tensor
        for key, tensor in tensors.items()
        if key.rpartition("/")[0] == component
    }
    return KeyStatistics(
        moments=dict(sorted(moments.items())),
        token_count=int(told["tokens"]),
        word_count=int(told["words"]),
        caption_count=int(told["captions"]),
        encoder_digest=str(told["encoder"]),
        corpus_digest=str(told["corpus"]),
        includes_bos=bool(told["includes_bos"]),
        includes_padding=bool(told["includes_padding"]),
        word_weight=float(told["word_weight"]),
        shrinkage=shrinkage,
    )


def _faults(found: Mapping[str, KeyStatistics]) -> list[str]:
    faults = []
    for component, statistics in found.items():
        if not statistics.moments:
            faults.append(f"it has no layer of the {component}; expected one or more.")
        for layer, moment in statistics.moments.items():
            if moment.dtype != torch.float32 or moment.ndim != 1 or not bool(torch.isfinite(moment).all()):
                faults.append(f"layer {layer} of the {component} is no row of finite float32 numbers.")
                continue
            try:
                powers = unpack(moment).diagonal()
            except NumericsError as error:
                faults.append(f"layer {layer} of the {component}: {error}")
                continue
            if not bool((powers >= 0).all()) or not bool(powers.any()):
                faults.append(f"layer {layer} of the {component} has no mean squares; expected some above 0.")
        if min(statistics.token_count, statistics.word_count, statistics.caption_count) < 1:
            faults.append(
                f"the {component}'s come from {statistics.token_count} tokens, {statistics.word_count} of "
                f"them words, in {statistics.caption_count} captions; expected some of each."
            )
    return faults


def content_of(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of version, encoders and tensors; texts that other tools add do not count."""
    digest = hashlib.sha256()
    for key in _TEXTS:
        digest.update(f"{key}\0{texts[key]}\0".encode())
    for key in sorted(tensors):
        digest.update(f"{key}\0{tensors[key].dtype}\0{tuple(tensors[key].shape)}\0".encode())
        digest.update(tensor_bytes(tensors[key]))
    return digest.hexdigest()
