"""The digest of a module's weights: what a stored result must name to be valid for them."""

import hashlib

import torch
from torch import Tensor, nn


def weights_digest(module: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all parameters of a module.

    Two modules with equal digests compute the same. Buffers are left out: in the models of this project they
    follow from the configuration, and library versions differ in which of them they keep.
    """
    total = hashlib.sha256()
    for name, weight in sorted(module.named_parameters(), key=lambda pair: pair[0]):
        total.update(f"{name.removeprefix('text_model.')}|{weight.dtype}|{tuple(weight.shape)}|".encode())
        total.update(tensor_bytes(weight))
    return total.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The raw bytes of a tensor, in row order."""
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()
