"""The header of a safetensors file, read and checked without trusting a single number in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from surgery.errors import SurgeryError, raise_all

HEADER_LIMIT: Final = 100_000_000  # bytes; the limit of the safetensors library

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file: its key there, type, shape, and byte range ``[start, end)`` in the file.

    ``transposed`` says that the bytes are those of the matrix with rows and columns swapped.
    """

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    transposed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a safetensors file holds: entries in the order of their bytes, metadata, where the data begins."""

    path: Path
    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def open_header(path: Path, kind: type[SurgeryError]) -> Header:
    """The header of a sound file.

    Raises:
        kind: listing every fault of it.
    """
    header, faults = read_header(path)
    if header is None:
        raise_all(kind, faults)
        raise kind(f"{path} cannot be read.")
    return header


def read_header(path: Path) -> tuple[Header | None, list[str]]:
    """The header of ``path``, or None, and every fault of it, each naming the file and the key."""
    try:
        table, data_start, size = _read_table(path)
    except (OSError, ValueError) as error:
        return None, [f"{path}: {error}; a whole safetensors file was expected. Fetch it again."]
    faults: list[str] = []
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        faults.append(
            f"{path}: __metadata__ is no table of texts; write the file again with a current library"
        )
        metadata = {}
    entries = []
    for key, description in table.items():
        entry, fault = _entry(path, key, description, data_start)
        if entry is None:
            faults.append(f"{path}: tensor {key!r} {fault}")
        else:
            entries.append(entry)
    entries.sort(key=lambda entry: (entry.start, entry.end))
    if not faults:
        faults = _range_faults(path, entries, data_start, size)
    header = Header(
        path=path, entries=tuple(entries), metadata=metadata, data_start=data_start, file_size=size
    )
    return (None if faults else header), faults


def _read_table(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed JSON, where the data begins, and the size of the file in bytes.

    Raises:
        ValueError: when the bytes are no header; the message continues "<path>: ".
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header should take {length} bytes, but the file ends after {size}")
        if length > HEADER_LIMIT:
            raise ValueError(f"its header takes {length} bytes, more than the {HEADER_LIMIT} allowed")
        text = handle.read(length)
    try:
        table = json.loads(text, object_pairs_hook=_no_doubles)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is no JSON ({error})") from error
    if not isinstance(table, dict):
        raise ValueError("its header is no JSON object")
    return table, 8 + length, size


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None, which is false
        raise ValueError(f"its header names {doubled!r} twice")
    return table


def _entry(path: Path, key: str, description: object, data_start: int) -> tuple[TensorEntry | None, str]:
    """The entry, or None and what is wrong with it."""
    match description:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            return None, f"is described by {description!r}; dtype, shape and data_offsets were expected"
    if dtype not in DTYPES:
        return None, f"has the type {dtype!r}; expected one of {', '.join(DTYPES)}"
    if not all(type(size) is int and size >= 0 for size in shape):
        return None, f"has the shape {shape!r}; whole numbers from 0 were expected"
    expected = prod(shape) * DTYPES[dtype].itemsize
    if start < 0 or end - start != expected:
        return None, f"takes bytes {start} to {end}; its type and shape need {expected} bytes"
    start, end = data_start + start, data_start + end
    return TensorEntry(file=path, key=key, dtype=DTYPES[dtype], shape=tuple(shape), start=start, end=end), ""


def _range_faults(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> list[str]:
    """Overlaps and holes between neighbours, and a file that ends too early or too late."""
    faults = []
    reached, before = data_start, "the header"
    for entry in entries:
        if entry.start != reached:
            kind = "overlaps" if entry.start < reached else "leaves a hole after"
            faults.append(f"{path}: tensor {entry.key!r} {kind} {before}; fetch the file again")
        reached, before = max(reached, entry.end), f"tensor {entry.key!r}"
    if reached > size:
        faults.append(f"{path}: cut off, it ends after {size} of {reached} bytes; fetch it again")
    elif reached < size:
        faults.append(f"{path}: {size - reached} bytes follow the last tensor; fetch it again")
    return faults
