"""Stage 0, on request: a finished checkpoint becomes the state, so that training goes on from it."""

from __future__ import annotations

import json
from pathlib import Path

import tokens
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from state import Stage
from torch import Tensor
from unet import WIDTHS
from widen import widened

# beside the weights, and in the state folder those of the checkpoint that was adopted
STEPS = "training.json"


def adopt(out: Path, folder: Path) -> None:
    """Writes the state of every stage that ``out`` has weights of; optimisers start afresh.

    A U-Net of other widths than the ones trained now is widened.
    """
    for stale in ("balance.json", "directions.pt"):
        (folder / stale).unlink(missing_ok=True)
    sd = out / "pocket-sd"
    unet = json.loads((sd / "unet" / "config.json").read_text())
    vae = json.loads((sd / "vae" / "config.json").read_text())
    weights = {
        "judge": load_file(out / "pocket-judge" / "model.safetensors"),
        "vae": load_file(sd / "vae" / "diffusion_pytorch_model.safetensors"),
        "text": _as_in_memory(load_file(sd / "text_encoder" / "model.safetensors")),
        "small" if unet["sample_size"] == 8 else "whole": _in_todays_widths(sd / "unet"),
    }
    for name, tensors in weights.items():
        full = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
        Stage(folder, name).save({"net": full, "average": full, "step": 0}, force=True)
    lines = (sd / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    (folder / "merges.json").write_text(json.dumps([line.split(" ") for line in lines]))
    (folder / STEPS).write_text((sd / STEPS).read_text())
    scale = {"scale": vae["scaling_factor"]}
    (folder / "scale.json").write_text(json.dumps(scale))
    tokens.read(sd / "tokenizer")  # fails here rather than hours later


def _in_todays_widths(folder: Path) -> dict[str, Tensor]:
    unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    tensors: dict[str, Tensor] = widened(unet, WIDTHS).state_dict()
    return tensors


def steps_before(folder: Path) -> dict[str, int]:
    """Steps of each stage that the adopted checkpoint had taken; none of what was trained from scratch."""
    path = folder / STEPS
    return json.loads(path.read_text()) if path.is_file() else {}


def _as_in_memory(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Text keys as the installed transformers spells them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    prefixed = next(iter(CLIPTextModel(config).state_dict())).startswith("text_model.")
    return stored if prefixed else {k.removeprefix("text_model."): t for k, t in stored.items()}
