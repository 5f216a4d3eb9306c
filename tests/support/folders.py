"""Checkpoint folders made of a few small tensors, written without any model library."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from surgery.checkpoint.keymap import WEIGHT_STEMS

Weights = Mapping[str, Mapping[str, Tensor]]

FC2 = "encoder.layers.0.mlp.fc2.weight"
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV = "down_blocks.0.resnets.0.conv1.weight"
PROJ_IN = "down_blocks.0.attentions.0.proj_in.weight"

FC2_NAME = f"text_encoder/text_model.{FC2}"
TO_K_NAME = f"unet/{TO_K}"
CONV_NAME = f"unet/{CONV}"


def weight_file(folder: Path, component: str) -> Path:
    return folder / component / f"{WEIGHT_STEMS[component]}.safetensors"


def write_folder(folder: Path, weights: Weights) -> Path:
    """A diffusers folder with these tensors under these keys, and files that are no weights beside them."""
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    for component, tensors in weights.items():
        index[component] = ["library", "Class"]
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text("{ }\n")
        save_file(dict(tensors), weight_file(folder, component), metadata={"format": "pt"})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def small_weights(dtype: torch.dtype = torch.float16, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The text and image weights of a pretended SD 1.x, a dozen elements each, with a negative zero."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    weights = {
        "text_encoder": {
            f"text_model.{FC2}": random(3, 5),
            "text_model.encoder.layers.0.mlp.fc2.bias": random(3),
            "text_model.embeddings.position_ids": torch.arange(4)[None],
        },
        "unet": {TO_K: random(4, 3), CONV: random(2, 2, 3, 3), PROJ_IN: random(2, 2, 1, 1)},
        "vae": {"decoder.conv_in.weight": random(2, 2, 3, 3)},
    }
    weights["text_encoder"][f"text_model.{FC2}"][0, 0] = -0.0
    return weights


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
