"""Diffusers folders opened from the headers of their weight files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoint.found import Found
from surgery.checkpoint.header import Header, TensorEntry, read_header
from surgery.checkpoint.keymap import canonical_name
from surgery.checkpoint.texts import read_json
from surgery.checkpoint.weights import WeightSet, find_weights, variant_faults
from surgery.errors import CheckpointError, brief, raise_all
from surgery.names import COMPONENTS


def find_folder(path: Path, variant: str | None) -> Found:
    """What a folder holds.

    Raises:
        CheckpointError: listing every fault found: missing or damaged files, pickles, doubled tensors, a
            variant that no component has.
    """
    faults: list[str] = []
    weights: dict[str, WeightSet] = {}
    headers: dict[Path, Header] = {}
    tensors: dict[str, TensorEntry] = {}
    for component in _components(path):
        weight_set, found = find_weights(path / component, component, variant)
        faults += found
        if weight_set is not None:
            weights[component] = weight_set
            faults += _collect(component, weight_set, headers, tensors)
    raise_all(CheckpointError, faults or variant_faults(path, weights, variant))
    return Found(tensors=tensors, headers=headers, weights=weights)


def _components(path: Path) -> Sequence[str]:
    """The components with weights that ``model_index.json`` names.

    Raises:
        CheckpointError: when ``path`` is no diffusers folder.
    """
    index = path / "model_index.json"
    if not index.is_file():
        raise CheckpointError(
            f"{path} has no model_index.json; a diffusers folder or a .safetensors file was expected. "
            "Is the path right?"
        )
    try:
        table = read_json(index)
    except ValueError as error:
        raise CheckpointError(
            f"{index} cannot be read: it {error}; the index of a folder was expected. Fetch it again."
        ) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{index} is no table; the index of a diffusers folder was expected.")
    named = {component: table[component] for component in COMPONENTS if component in table}
    raise_all(
        CheckpointError,
        [
            f"{index} says {brief(value)} of {component!r}; library and class were expected. Fetch it again."
            for component, value in named.items()
            if not _is_entry(value)
        ],
    )
    used = [component for component, (_, kind) in named.items() if kind]
    if not used:
        raise CheckpointError(f"{index} names none of {', '.join(COMPONENTS)}; is this a Stable Diffusion?")
    return used


def _is_entry(value: Any) -> bool:
    """Whether an index names a library and a class, or none of both."""
    return isinstance(value, list) and len(value) == 2 and all(x is None or isinstance(x, str) for x in value)


def _collect(
    component: str,
    weight_set: WeightSet,
    headers: dict[Path, Header],
    tensors: dict[str, TensorEntry],
) -> Iterator[str]:
    """Add the headers and tensors of one component; yields what is wrong with them."""
    keys: dict[str, Path] = {}
    sound = True
    for file in weight_set.files:
        header, faults = read_header(file)
        yield from faults
        if header is None:
            sound = False
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
    if sound and weight_set.shard_of and weight_set.shard_of != keys:
        strays = sorted(weight_set.shard_of.items() ^ keys.items())
        yield (
            f"{strays[0][1]}: {brief(strays[0][0])} is not where the index of the shards says. "
            "Fetch them again."
        )
