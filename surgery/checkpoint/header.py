"""The header of a safetensors file, read and checked without trusting a single number in it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from surgery.checkpoint.texts import parse_json, regular_size
from surgery.errors import SurgeryError, brief, raise_all

HEADER_LIMIT: Final = 25_000_000  # bytes; the library's limit is 100 MB, the largest of SDXL's take 0.4 MB
TENSOR_LIMIT: Final = 2**31  # bytes; the largest of SDXL in single precision takes 253 MB
LONGEST_KEY: Final = 1000
MOST_TENSORS: Final = 100_000  # SDXL has 2,500; a patch of many masks has as many parts for each of them
_MOST_AXES: Final = 16

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

_OTHER_KINDS: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive, as pickled checkpoints are",
    b"\x80": "a pickle",
    b"{": "a text",
    b"<": "a page of a web site",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file",
}
"""How files begin that people rename, or download, as ``.safetensors``."""


class Stamp(NamedTuple):
    """What tells a file from one that was put in its place or written to since."""

    device: int
    inode: int
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file: its key there, type, shape, and byte range ``[start, end)`` in the file.

    ``transposed`` says that the bytes are those of the matrix with rows and columns swapped; ``stamp`` is the
    file's when its header was read.
    """

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    stamp: Stamp
    transposed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a safetensors file holds: entries in the order of their bytes, metadata, where the data begins."""

    path: Path
    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_start: int
    stamp: Stamp


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
        table, data_start, stamp = _read_table(path)
    except OSError as error:
        return None, [
            f"{path}: {error.strerror or error}; a safetensors file was expected. Is the name right?"
        ]
    except ValueError as error:
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
        try:
            entries.append(_entry(path, key, description, data_start, stamp))
        except ValueError as error:
            faults.append(f"{path}: tensor {brief(key)} {error}")
    entries.sort(key=lambda entry: (entry.start, entry.end))
    if not faults:
        faults = list(_range_faults(path, entries, data_start, stamp.size))
    header = Header(path=path, entries=tuple(entries), metadata=metadata, data_start=data_start, stamp=stamp)
    return (None if faults else header), faults


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file from its status."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _read_table(path: Path) -> tuple[dict[str, Any], int, Stamp]:
    """The parsed JSON, where the data begins, and the stamp of the file.

    Raises:
        ValueError: when the bytes are no header; the message continues "<path>: ".
    """
    try:
        regular_size(path)
    except ValueError as error:
        raise ValueError(f"it {error}") from error
    with path.open("rb") as handle:
        stamp = stamp_of(os.fstat(handle.fileno()))
        begin = handle.read(32)
        length = int.from_bytes(begin[:8], "little")
        if stamp.size < 8 or length > stamp.size - 8:
            kinds = (kind for first, kind in _OTHER_KINDS.items() if begin.startswith(first))
            hint = next((f" (it begins like {kind})" for kind in kinds), "")
            raise ValueError(
                f"its header should take {length} bytes, but the file ends after {stamp.size}{hint}"
            )
        if length > HEADER_LIMIT:
            raise ValueError(f"its header takes {length} bytes, more than the {HEADER_LIMIT} allowed")
        handle.seek(8)
        text = handle.read(length)
    try:
        table = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its header {error}") from error
    if not isinstance(table, dict):
        raise ValueError("its header is no JSON object")
    named = len(table.keys() - {"__metadata__"})
    if named > MOST_TENSORS:
        raise ValueError(f"its header names {named} tensors, more than the {MOST_TENSORS} allowed")
    return table, 8 + length, stamp


def _entry(path: Path, key: str, description: object, data_start: int, stamp: Stamp) -> TensorEntry:
    """The entry of one tensor.

    Raises:
        ValueError: when its description cannot be; the message continues "tensor <key> ".
    """
    if not key.isprintable() or not 0 < len(key) <= LONGEST_KEY:
        raise ValueError(
            f"has a name of {len(key)} letters with control characters or none; up to {LONGEST_KEY} "
            "printable ones were expected. Was the file tampered with?"
        )
    match description:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            pass
        case _:
            raise ValueError(
                f"is described by {brief(description)}; dtype, shape and data_offsets were expected"
            )
    if dtype not in DTYPES:
        raise ValueError(f"has the type {brief(dtype)}; expected one of {', '.join(DTYPES)}")
    if len(shape) > _MOST_AXES or not all(type(size) is int and 0 <= size <= TENSOR_LIMIT for size in shape):
        raise ValueError(
            f"has the shape {brief(shape)}; up to {_MOST_AXES} whole numbers from 0 were expected"
        )
    expected = prod(shape) * DTYPES[dtype].itemsize
    if type(start) is not int or type(end) is not int or start < 0 or end - start != expected:
        raise ValueError(
            f"takes bytes {brief(start)} to {brief(end)}; its type and shape need {brief(expected)} bytes"
        )
    if expected > TENSOR_LIMIT:
        raise ValueError(f"takes {expected} bytes; no Stable Diffusion has one over {TENSOR_LIMIT}")
    return TensorEntry(
        file=path,
        key=key,
        dtype=DTYPES[dtype],
        shape=tuple(shape),
        start=data_start + start,
        end=data_start + end,
        stamp=stamp,
    )


def _range_faults(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> Iterator[str]:
    """Overlaps and holes between neighbours, and a file that ends too early or too late."""
    reached, before = data_start, "the header"
    for entry in entries:
        if entry.start != reached:
            kind = "overlaps" if entry.start < reached else "leaves a hole after"
            yield f"{path}: tensor {entry.key!r} {kind} {before}; fetch the file again"
        reached, before = max(reached, entry.end), f"tensor {entry.key!r}"
    if reached > size:
        yield f"{path}: cut off, it ends after {size} of {reached} bytes; fetch it again"
    elif reached < size:
        yield f"{path}: {size - reached} bytes follow the last tensor; fetch it again"
