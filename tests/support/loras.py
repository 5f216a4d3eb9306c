"""LoRA files as a loader sees them, and layers of the tiny pipeline that they change."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

BLOCK = "unet/down_blocks.0.attentions.0.transformer_blocks.0"
Q_PROJ = "text_encoder/text_model.encoder.layers.2.self_attn.q_proj.weight"

each_generation = pytest.mark.parametrize("generation", ["current", "older"])


def products(file: Path) -> dict[str, Tensor]:
    """What a loader adds per module: alpha / rank times up times down, kernels kept."""
    stored = load_file(file)
    changes = {}
    for key in [key.removesuffix(".alpha") for key in stored if key.endswith(".alpha")]:
        up, down = stored[f"{key}.lora_up.weight"], stored[f"{key}.lora_down.weight"]
        scale = stored[f"{key}.alpha"].item() / down.shape[0]
        product = up.flatten(1).double() @ down.flatten(1).double()
        changes[key] = scale * product.reshape(up.shape[0], *down.shape[1:])
    return changes
