"""Pairs of small checkpoints, the second with a known change."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.support.folders import PROJ_IN, write_folder

Tensors = dict[str, dict[str, Tensor]]
Change = Callable[[str, Tensor], Tensor]

LAYERS = 3
WIDTHS = (24, 32, 40, 48)
TEXT = 16


def fc2(layer: int) -> str:
    return f"text_model.encoder.layers.{layer}.mlp.fc2.weight"


def attn2(level: int, which: str) -> str:
    return f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn2.{which}.weight"


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """A pretended SD 1.x with text MLPs, cross-attention, convolutions, norms and token vectors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    text = {fc2(layer): random(TEXT, 4 * TEXT) for layer in range(LAYERS)}
    text |= {f"text_model.encoder.layers.{layer}.layer_norm1.weight": random(TEXT) for layer in range(LAYERS)}
    text["text_model.embeddings.token_embedding.weight"] = random(50, TEXT)
    unet = {PROJ_IN: random(8, 8, 1, 1), "conv_in.weight": random(8, 4, 3, 3), "conv_in.bias": random(8)}
    for level, width in enumerate(WIDTHS):
        unet |= {attn2(level, which): random(width, TEXT) for which in ("to_k", "to_v")}
        unet[attn2(level, "to_q")] = random(width, width)
    vae = {"decoder.conv_in.weight": random(4, 4, 3, 3), "decoder.conv_in.bias": random(4)}
    return {"text_encoder": text, "unet": unet, "vae": vae}


def changed(tensors: Tensors, change: Change) -> Tensors:
    """A copy with ``change(name, tensor)`` in place of each tensor."""
    return {
        component: {key: change(f"{component}/{key}", tensor.clone()) for key, tensor in inside.items()}
        for component, inside in tensors.items()
    }


def pair(folder: Path, before: Tensors, after: Mapping[str, Mapping[str, Tensor]]) -> tuple[Path, Path]:
    return write_folder(folder / "base", before), write_folder(folder / "edited", after)


def low_rank(tensor: Tensor, rank: int, size: float = 0.1, seed: int = 0) -> Tensor:
    """A change of that rank, as large as ``size`` of a standard normal matrix."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = tensor.shape
    left, right = (
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, columns, generator=generator),
    )
    change: Tensor = size * left @ right / rank**0.5
    return change.to(tensor.dtype)
