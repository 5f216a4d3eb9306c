"""The digest of a module's weights: what a stored result must name to be valid for them."""

import hashlib
import json

import torch
from torch import Tensor, nn

# Of a text encoder's settings those that its shapes do not tell: library versions differ in the rest.
_TEXT_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads")


def weights_digest(module: nn.Module) -> str:
    """sha256 over a module's settings and the names, types, shapes and bytes of all its parameters.

    Two modules with equal digests compute the same. Buffers are left out: in the models of this project they
    follow from the configuration, and library versions differ in which of them they keep.
    """
    total = hashlib.sha256(settings_text(module).encode())
    for name, weight in sorted(module.named_parameters(), key=lambda pair: pair[0]):
        total.update(f"{name.removeprefix('text_model.')}|{weight.dtype}|{tuple(weight.shape)}|".encode())
        total.update(tensor_bytes(weight))
    return total.hexdigest()


def settings_text(configured: object) -> str:
    """What the configuration of a model or scheduler says about its computation; empty without one."""
    config = getattr(configured, "config", None)
    if config is None:
        return ""
    told = {name: getattr(config, name) for name in _TEXT_SETTINGS if hasattr(config, name)}
    if not told:
        told = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return json.dumps({"class": type(configured).__name__, **told}, sort_keys=True, default=str)


def tensor_bytes(tensor: Tensor) -> bytes:
    """The raw bytes of a tensor, in row order."""
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()
