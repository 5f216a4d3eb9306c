"""A checkpoint on disk, opened from its headers alone."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from surgery.checkpoint.digest import Fingerprint, fingerprint
from surgery.checkpoint.folder import find_folder
from surgery.checkpoint.header import Header, TensorEntry
from surgery.checkpoint.ldm import PROJECTION
from surgery.checkpoint.leftovers import Leftover
from surgery.checkpoint.notes import notes_of_file, notes_of_folder
from surgery.checkpoint.reader import read_blocks, read_tensor
from surgery.checkpoint.single import find_single
from surgery.checkpoint.weights import PICKLES, WeightSet
from surgery.errors import CheckpointError, nearest

_log = logging.getLogger(__name__)

Layout = Literal["folder", "single"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose headers were read and found sound; tensors are read when asked for.

    Attributes:
        architecture: ModelSpec's word, ``stable-diffusion-v1`` and the like; ``unknown`` for others.
        tensors: Weights by canonical name. Buffers that are no weights are left out.
        headers: Of every weight file, by path.
        weights: Per component, which of its files were taken.
        averaged: The averaged copy of the U-Net's weights that some single files carry beside them; it
            belongs to no fingerprint.
        leftovers: What else a single file holds that is no weight of a pipeline.
    """

    path: Path
    layout: Layout
    architecture: str
    tensors: Mapping[str, TensorEntry]
    headers: Mapping[Path, Header]
    weights: Mapping[str, WeightSet]
    averaged: Mapping[str, TensorEntry] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, by canonical name."""
        return {name: entry.shape for name, entry in self.tensors.items()}

    @property
    def notes(self) -> dict[str, str]:
        """What the checkpoint says of itself, where it does: short plain texts, ``title`` and ``license``.

        From the README of a folder or the ModelSpec metadata of a single file.
        """
        if self.layout == "folder":
            return notes_of_folder(self.path)
        return notes_of_file(self.headers[self.path])

    def entry(self, name: str) -> TensorEntry:
        """Where the tensor of a canonical name lies.

        Raises:
            CheckpointError: when there is no such tensor; the message names the nearest one.
        """
        if name not in self.tensors:
            guess = nearest(name, self.tensors)
            raise CheckpointError(f"{self.path} has no tensor {name!r}. Did you mean {guess!r}?")
        return self.tensors[name]

    def read(self, name: str) -> Tensor:
        """The tensor of a canonical name as stored, in memory of its own.

        Raises:
            CheckpointError: when there is no such tensor, or its file changed since it was opened.
        """
        return read_tensor(self.entry(name))

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The tensor in blocks of whole rows of some megabytes, each with the number of its first row.

        Raises:
            CheckpointError: when there is no such tensor, or its file changed since it was opened.
        """
        return read_blocks(self.entry(name))

    def fingerprint(self) -> Fingerprint:
        """Digests of all weights; every one is read once."""
        return fingerprint(self.tensors)


def open_checkpoint(path: Path, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint in a diffusers folder or in a single file; only headers are read.

    Args:
        path: The folder or the file.
        variant: Which variant of the components' files to take (``fp16``) where a folder has it; without one
            the plain files where they exist, else the only variant.

    Raises:
        CheckpointError: listing every fault found: missing or damaged files, pickles, doubled names.
    """
    single = _is_file(path)
    if single and path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run code; safetensors were expected. Take the safetensors of the "
            "same model, or write them from the pickle's tensors alone: surgery convert FILE --allow-pickle "
            "-o FILE.safetensors"
        )
    if single and variant is not None:
        raise CheckpointError(f"{path} is a single file; only folders have variants. Leave {variant!r} out.")
    found = find_single(path) if single else find_folder(path, variant)
    _warn_of_metadata(found.headers)
    return Checkpoint(
        path=path,
        layout="single" if single else "folder",
        architecture=_architecture(found.tensors),
        tensors=found.tensors,
        headers=found.headers,
        weights=found.weights,
        averaged=found.averaged,
        leftovers=found.leftovers,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be looked at ({error.strerror}); a diffusers folder or a .safetensors file was "
            "expected. Is the path right?"
        ) from error


def _architecture(tensors: Mapping[str, TensorEntry]) -> str:
    """ModelSpec's word for the family, told from tensors that only it has."""
    if "unet/add_embedding.linear_1.weight" in tensors:
        only_second = any(name.startswith("text_encoder_2/") for name in tensors) and not any(
            name.startswith("text_encoder/") for name in tensors
        )
        return "stable-diffusion-xl-v1-refiner" if only_second else "stable-diffusion-xl-v1-base"
    projection = tensors.get(PROJECTION)
    if projection is None:
        return "unknown"
    return "stable-diffusion-v1" if len(projection.shape) == 4 else "stable-diffusion-v2"


def _warn_of_metadata(headers: Mapping[Path, Header]) -> None:
    for file, header in headers.items():
        if header.metadata and header.metadata.get("format") != "pt":
            _log.warning(
                "%s carries metadata without format=pt; transformers before 5 refuse to load it. It is kept.",
                file,
            )
