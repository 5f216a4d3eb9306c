"""Single files ("LDM") opened from their header: which part of which of its tensors each weight is."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from surgery.checkpoint.found import Found
from surgery.checkpoint.header import TensorEntry, open_header
from surgery.checkpoint.ldm import AVERAGED_PREFIX, Place, averaged_places, places_of_keys
from surgery.checkpoint.leftovers import leftovers
from surgery.checkpoint.weights import WeightSet
from surgery.errors import CheckpointError, brief, raise_all
from surgery.names import split

_log = logging.getLogger(__name__)


def find_single(path: Path) -> Found:
    """What a single file holds.

    Raises:
        CheckpointError: listing every fault found: a damaged file, doubled tensors, no Stable Diffusion.
    """
    header = open_header(path, CheckpointError)
    entries = {entry.key: entry for entry in header.entries}
    shapes = {key: entry.shape for key, entry in entries.items()}
    try:
        places = places_of_keys(shapes)
    except CheckpointError as error:
        raise_all(CheckpointError, [f"{path}: {fault}" for fault in error.faults])
        raise
    if not places:
        shown = ", ".join(brief(key) for key in list(entries)[:3])
        raise CheckpointError(
            f"{path} holds no Stable Diffusion (its keys begin with {shown}); expected keys such as "
            "'model.diffusion_model.…'. A patch or a LoRA is no checkpoint."
        )
    averages = any(key.startswith(AVERAGED_PREFIX) for key in entries)
    tensors = _placed_all(entries, places)
    weights = {
        component: WeightSet(
            variant=None, files=(path,), surplus=(path,) if averages and component == "unet" else ()
        )
        for component in sorted({split(name)[0] for name in tensors})
    }
    return Found(
        tensors=tensors,
        headers={path: header},
        weights=weights,
        averaged=_placed_all(entries, averaged_places(shapes)) if averages else {},
        leftovers=leftovers(entries, {place.key for place in places.values()}),
    )


def _placed_all(entries: Mapping[str, TensorEntry], places: Mapping[str, Place]) -> dict[str, TensorEntry]:
    tensors, faults = {}, []
    for name, place in places.items():
        try:
            tensors[name] = _placed(entries[place.key], place)
        except ValueError as error:
            faults.append(f"{entries[place.key].file}: tensor {place.key!r} {error}")
    raise_all(CheckpointError, faults)
    return tensors


def _placed(entry: TensorEntry, place: Place) -> TensorEntry:
    """The part of a file's tensor that one canonical tensor is; a block of rows is a range of bytes.

    Raises:
        ValueError: when it has no such parts; the message continues "tensor <key> ".
    """
    size, shape = (entry.end - entry.start) // place.parts, entry.shape
    start = entry.start + place.part * size
    if place.parts > 1:
        if not shape or shape[0] % place.parts:
            raise ValueError(f"has shape {shape}; expected query, key and value in it. Fetch the file again.")
        shape = (shape[0] // place.parts, *shape[1:])
    if place.pixel:
        if shape[2:] != (1, 1):
            raise ValueError(f"has shape {shape}; a convolution of 1×1 was expected. Fetch the file again.")
        shape = shape[:2]
    if place.transposed:
        if len(shape) != 2:
            raise ValueError(f"has shape {shape}; a matrix was expected. Fetch the file again.")
        shape = shape[::-1]
    return replace(entry, shape=shape, start=start, end=start + size, transposed=place.transposed)
