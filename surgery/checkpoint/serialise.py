"""New safetensors files whose bytes depend on their content alone.

The safetensors library writes metadata in the order of a hash table, which differs from run to run; equal
patches must be equal files.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Final, TypeAlias

import torch
from torch import Tensor

from surgery.checkpoint.atomic import Bytes
from surgery.checkpoint.digest import tensor_bytes
from surgery.checkpoint.header import DTYPE_NAMES, HEADER_LIMIT, MOST_TENSORS, TensorEntry
from surgery.checkpoint.reader import read_chunks, read_tensor
from surgery.errors import CheckpointError

_ALIGNMENT: Final = 8  # bytes; the widest element


@dataclass(frozen=True, slots=True, kw_only=True)
class Lazy:
    """A tensor that is made when its turn to be written comes, whole or in blocks of rows."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor | Iterator[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A tensor whose bytes are there already and are passed on in pieces when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Bytes]]


Written: TypeAlias = Tensor | Lazy | Copied


def copied(entry: TensorEntry) -> Lazy | Copied:
    """The tensor of an entry as it is; memory does not grow with it unless it is stored transposed."""
    if entry.transposed:
        return Lazy(dtype=entry.dtype, shape=entry.shape, make=partial(read_tensor, entry))
    chunks = partial(read_chunks, entry.file, entry.start, entry.end, entry.stamp)
    return Copied(dtype=entry.dtype, shape=entry.shape, chunks=chunks)


def safetensors_chunks(tensors: Mapping[str, Written], metadata: Mapping[str, str]) -> Iterator[Bytes]:
    """The bytes of a file with these tensors: header first, then each tensor.

    Metadata sorted by key; tensors by element size, widest first (so that each is aligned), then by key.
    Each piece is good until the next one is asked for.

    Raises:
        CheckpointError: when the header would be longer, or name more tensors, than readers allow.
    """
    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].dtype.itemsize, pair[0]))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for key, tensor in ordered:
        end = position + prod(tensor.shape) * tensor.dtype.itemsize
        header[key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > HEADER_LIMIT or len(ordered) > MOST_TENSORS:
        raise CheckpointError(
            f"the header would take {len(text)} bytes for {len(ordered)} tensors; {HEADER_LIMIT} bytes and "
            f"{MOST_TENSORS} tensors are allowed, and readable. Write several files."
        )
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if isinstance(tensor, Copied):
            yield from tensor.chunks()
        else:
            made = tensor.make() if isinstance(tensor, Lazy) else tensor
            for block in (made,) if isinstance(made, Tensor) else made:
                yield tensor_bytes(block.detach().cpu().contiguous())
