r"""Fingerprints: what decides whether a patch belongs to a checkpoint.

Two sha256 digests per tensor, over ``canonical name \0 type \0 shape \0 little-endian bytes``:

- ``bytes``: of the tensor as stored, down to the sign of a zero;
- ``value16``: of its values rounded to half precision, with -0 written as +0. It is the same for the fp32 and
  the fp16 copy of one base, whatever the layout.

Both digests of a component's tensors, sorted by name, give the two roots of the component.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.checkpoint.header import DTYPE_NAMES, TensorEntry
from surgery.checkpoint.reader import read_tensor
from surgery.names import split
from surgery.progress import track


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
    """The fingerprint of tensors on disk; each is read once, a few at a time, in threads.

    Hashing is the floor: sha256 lets other threads run, so the time is the bytes over the hashing speed of
    the cores. Half precision without a negative zero is hashed once, other types twice.
    """
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        digests = pool.map(lambda name: tensor_digest(name, read_tensor(entries[name])), entries)
        tensors = dict(
            track(zip(entries, digests, strict=True), "fingerprint", total=len(entries), unit="tensor")
        )
    return Fingerprint(tensors=tensors, roots=component_roots(tensors))


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
    exact = _sha256(name, tensor)
    if not tensor.dtype.is_floating_point:
        return Digest(bytes=exact, value16=exact)
    bits = tensor.to(torch.float16).view(torch.int16)
    negative_zeros = bits == torch.iinfo(torch.int16).min
    if tensor.dtype == torch.float16 and not bool(negative_zeros.any()):
        return Digest(bytes=exact, value16=exact)
    value16 = bits.masked_fill(negative_zeros, 0).view(torch.float16)
    return Digest(bytes=exact, value16=_sha256(name, value16))


def _sha256(name: str, tensor: Tensor) -> str:
    shape = ",".join(str(size) for size in tensor.shape)
    digest = hashlib.sha256(f"{name}\0{DTYPE_NAMES[tensor.dtype]}\0{shape}\0".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The stored bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
