"""A checkpoint on disk, opened from its headers alone."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from surgery.checkpoint.digest import Fingerprint, fingerprint
from surgery.checkpoint.header import Header, TensorEntry, open_header, read_header
from surgery.checkpoint.keymap import canonical_name
from surgery.checkpoint.ldm import AVERAGED_PREFIX, PROJECTION, Place, places_of_keys
from surgery.checkpoint.reader import read_tensor
from surgery.checkpoint.weights import PICKLES, WeightSet, find_weights
from surgery.errors import CheckpointError, nearest, raise_all
from surgery.names import COMPONENTS, split

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
    """

    path: Path
    layout: Layout
    architecture: str
    tensors: Mapping[str, TensorEntry]
    headers: Mapping[Path, Header]
    weights: Mapping[str, WeightSet]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, by canonical name."""
        return {name: entry.shape for name, entry in self.tensors.items()}

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
            CheckpointError: when there is no such tensor.
        """
        return read_tensor(self.entry(name))

    def fingerprint(self) -> Fingerprint:
        """Digests of all weights; every one is read once."""
        return fingerprint(self.tensors)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a diffusers folder or in a single file; only headers are read.

    Raises:
        CheckpointError: listing every fault found: missing or damaged files, pickles, doubled names.
    """
    if path.is_file() and path.suffix not in PICKLES:
        return _open_single(path)
    faults: list[str] = []
    weights: dict[str, WeightSet] = {}
    headers: dict[Path, Header] = {}
    tensors: dict[str, TensorEntry] = {}
    for component in _components(path):
        weight_set, found = find_weights(path / component, component)
        faults += found
        if weight_set is not None:
            weights[component] = weight_set
            faults += _collect(component, weight_set, headers, tensors)
    raise_all(CheckpointError, faults)
    _warn_of_metadata(headers)
    return Checkpoint(
        path=path,
        layout="folder",
        architecture=_architecture(tensors),
        tensors=tensors,
        headers=headers,
        weights=weights,
    )


def _open_single(path: Path) -> Checkpoint:
    header = open_header(path, CheckpointError)
    entries = {entry.key: entry for entry in header.entries}
    places = places_of_keys({key: entry.shape for key, entry in entries.items()})
    if not places:
        shown = ", ".join(repr(key) for key in list(entries)[:3])
        raise CheckpointError(
            f"{path} holds no Stable Diffusion (its keys begin with {shown}); expected keys such as "
            "'model.diffusion_model.…'. A patch or a LoRA is no checkpoint."
        )
    tensors = {name: _placed(entries[place.key], place) for name, place in places.items()}
    weights = dict.fromkeys(
        sorted({split(name)[0] for name in tensors}), WeightSet(variant=None, files=(path,))
    )
    if any(key.startswith(AVERAGED_PREFIX) for key in entries):
        weights["unet"] = WeightSet(variant=None, files=(path,), surplus=(path,))
    return Checkpoint(
        path=path,
        layout="single",
        architecture=_architecture(tensors),
        tensors=tensors,
        headers={path: header},
        weights=weights,
    )


def _placed(entry: TensorEntry, place: Place) -> TensorEntry:
    """The part of a file's tensor that one canonical tensor is; a block of rows is a range of bytes."""
    size, shape = (entry.end - entry.start) // place.parts, entry.shape
    start = entry.start + place.part * size
    if place.parts > 1:
        if not shape or shape[0] % place.parts:
            raise CheckpointError(
                f"{entry.file}: tensor {entry.key!r} has shape {shape}; expected query, key and value in it."
            )
        shape = (shape[0] // place.parts, *shape[1:])
    if place.pixel:
        shape = shape[:2]
    if place.transposed:
        shape = shape[::-1]
    return replace(entry, shape=shape, start=start, end=start + size, transposed=place.transposed)


def _components(path: Path) -> list[str]:
    """The components with weights that ``model_index.json`` names.

    Raises:
        CheckpointError: when ``path`` is no diffusers folder; other layouts are told apart.
    """
    index = path / "model_index.json"
    if path.suffix in PICKLES and path.is_file():
        raise CheckpointError(
            f"{path} is a pickle, which can run code; safetensors were expected. Convert it elsewhere first."
        )
    if not index.is_file():
        raise CheckpointError(
            f"{path} has no model_index.json; a diffusers folder or a .safetensors file was expected. "
            "Is the path right?"
        )
    try:
        table = json.loads(index.read_text(encoding="utf-8"))
        named = [component for component in COMPONENTS if (table.get(component) or [None])[0]]
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}); fetch it again.") from error
    if not named:
        raise CheckpointError(f"{index} names none of {', '.join(COMPONENTS)}; is this a Stable Diffusion?")
    return named


def _collect(
    component: str,
    weight_set: WeightSet,
    headers: dict[Path, Header],
    tensors: dict[str, TensorEntry],
) -> Iterator[str]:
    """Add the headers and tensors of one component; yields what is wrong with them."""
    keys: dict[str, Path] = {}
    for file in weight_set.files:
        header, faults = read_header(file)
        yield from faults
        if header is None:
            continue
        headers[file] = header
        for entry in header.entries:
            name = canonical_name(component, entry.key)
            if name in tensors:
                other = tensors[name]
                yield f"{file}: {entry.key!r} is the same tensor as {other.key!r} in {other.file}; keep one"
            elif name is not None:
                tensors[name] = entry
            keys[entry.key] = file
    if weight_set.shard_of and weight_set.shard_of != keys:
        strays = sorted(weight_set.shard_of.items() ^ keys.items())
        yield f"{strays[0][1]}: {strays[0][0]!r} is not where the index of the shards says. Fetch them again."


def _architecture(tensors: Mapping[str, TensorEntry]) -> str:
    """ModelSpec's word for the family, told from tensors that only it has."""
    if "unet/add_embedding.linear_1.weight" in tensors:
        return "stable-diffusion-xl-v1-base"
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
