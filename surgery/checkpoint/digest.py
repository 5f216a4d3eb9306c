r"""Fingerprints: what decides whether a patch belongs to a checkpoint.

Two sha256 digests per tensor, over ``canonical name \0 type \0 shape \0 little-endian bytes``:

- ``bytes``: of the tensor as stored, down to the sign of a zero;
- ``value16``: of its values rounded to half precision, with -0 written as +0. It is the same for the fp32 and
  the fp16 copy of one base, whatever the layout.

Both digests of a component's tensors, sorted by name, give the two roots of the component.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from surgery.checkpoint.header import DTYPE_NAMES, TensorEntry
from surgery.checkpoint.reader import CHUNK_BYTES, read_chunks, read_tensor
from surgery.names import split
from surgery.progress import track
from surgery.threads import one_thread_each

T = TypeVar("T")

_NEGATIVE_ZERO: Final = np.iinfo(np.int16).min  # its bits in half precision, read as a whole number


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The two digests of a tensor, or of all tensors of a component (lower-case hexadecimal)."""

    bytes: str
    value16: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Digests of tensors by canonical name, and of components as wholes."""

    tensors: Mapping[str, Digest]
    roots: Mapping[str, Digest]


def fingerprint(entries: Mapping[str, TensorEntry]) -> Fingerprint:
    """The fingerprint of tensors on disk; each is read once, piece by piece, a few tensors at a time.

    Hashing is the floor: sha256 lets other threads run, so the time is the bytes over the hashing speed of
    the cores. Half precision without a negative zero is hashed once, other types twice. Memory does not grow
    with the tensors.
    """
    tensors = _of_each(entries, lambda name: _digest(name, entries[name], value16=True))
    return Fingerprint(tensors=tensors, roots=component_roots(tensors))


def byte_digests(entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    """The ``bytes`` digests alone, for who asks whether files are the very same: half the work in fp32."""
    return _of_each(entries, lambda name: _digest(name, entries[name], value16=False).bytes)


def _of_each(entries: Mapping[str, TensorEntry], work: Callable[[str], T]) -> dict[str, T]:
    with one_thread_each() as pool:
        pairs = zip(entries, pool.map(work, entries), strict=True)
        return dict(track(pairs, "fingerprint", total=len(entries), unit="tensor"))


def component_roots(tensors: Mapping[str, Digest]) -> dict[str, Digest]:
    """One pair of digests per component, over its tensors sorted by name."""
    roots = {}
    for component in sorted({split(name)[0] for name in tensors}):
        names = sorted(name for name in tensors if split(name)[0] == component)
        exact, value16 = hashlib.sha256(), hashlib.sha256()
        for name in names:
            exact.update(f"{name}\0{tensors[name].bytes}\n".encode())
            value16.update(f"{name}\0{tensors[name].value16}\n".encode())
        roots[component] = Digest(bytes=exact.hexdigest(), value16=value16.hexdigest())
    return roots


def tensor_digest(name: str, tensor: Tensor) -> Digest:
    """Both digests of a tensor under its canonical name; it may lie on any device."""
    tensor = tensor.detach().cpu().contiguous()
    hashes = TensorHash(name, tensor.dtype, tuple(tensor.shape))
    hashes.add(tensor)
    return hashes.digest()


def entry_digest(name: str, entry: TensorEntry) -> Digest:
    """Both digests of a tensor on disk, read piece by piece.

    Raises:
        CheckpointError: when the file cannot be read, or changed since its header was read.
    """
    return _digest(name, entry, value16=True)


def _digest(name: str, entry: TensorEntry, *, value16: bool) -> Digest:
    hashes = TensorHash(name, entry.dtype, entry.shape, value16=value16)
    if entry.transposed:
        pieces = _pieces(read_tensor(entry))
    else:
        pieces = read_chunks(entry.file, entry.start, entry.end, entry.stamp)
    for piece in pieces:
        hashes.update(piece)
    return hashes.digest()


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    data = tensor_bytes(tensor)
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


class TensorHash:
    """Both digests of one tensor, fed with its bytes in pieces of whole elements, or with blocks of its rows.

    A half-precision tensor has one hash until its first negative zero; then the other goes its own way.
    """

    def __init__(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], *, value16: bool = True
    ) -> None:
        self._dtype = dtype
        self._exact = _started(name, dtype, shape)
        self._asked = value16 and dtype.is_floating_point
        self._value16 = None
        if self._asked and dtype != torch.float16:
            self._value16 = _started(name, torch.float16, shape)
        self._half, self._single = torch.empty(0, dtype=torch.float16), torch.empty(0)

    def update(self, piece: memoryview) -> None:
        """The next bytes; they are not kept."""
        if self._asked:
            bits = self._half_bits(piece)
            negative = int(bits.min()) == _NEGATIVE_ZERO
            if negative and self._value16 is None:
                self._value16 = self._exact.copy()
            if self._value16 is not None:
                cleaned = np.where(bits == _NEGATIVE_ZERO, np.int16(0), bits) if negative else bits
                self._value16.update(cleaned.data)
        self._exact.update(piece)

    def add(self, block: Tensor) -> None:
        """The next rows, on the CPU and contiguous."""
        for piece in _pieces(block):
            self.update(piece)

    def digest(self) -> Digest:
        """The digests of what was fed."""
        exact = self._exact.hexdigest()
        return Digest(bytes=exact, value16=self._value16.hexdigest() if self._value16 else exact)

    def _half_bits(self, piece: memoryview) -> "np.ndarray[tuple[int], np.dtype[np.int16]]":
        """The elements rounded to half precision, as whole numbers."""
        if self._dtype == torch.float16:
            return np.frombuffer(piece, dtype=np.int16)
        stored = torch.frombuffer(piece, dtype=self._dtype)
        if len(self._half) < len(stored):
            self._half = torch.empty(len(stored), dtype=torch.float16)
            self._single = torch.empty(len(stored) if self._dtype == torch.bfloat16 else 0)
        if self._dtype == torch.bfloat16:  # by way of single precision torch is three times as fast
            stored = self._single[: len(stored)].copy_(stored)
        half = self._half[: len(stored)].copy_(stored)
        return half.view(torch.int16).numpy()


def _started(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> "hashlib._Hash":
    text = ",".join(str(size) for size in shape)
    return hashlib.sha256(f"{name}\0{DTYPE_NAMES[dtype]}\0{text}\0".encode())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The stored bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
