"""Stage 5: the finished checkpoint as a diffusers folder in half precision, its caption corpus beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokens
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from text import SHARES, WIDTH, captions_of
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from vocabulary import Vocabulary

CORPUS_COUNT = 12_000
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.35.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "timestep_spacing": "linspace",
    "steps_offset": 1,
}


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    for name, tensor in halves.items():
        if not torch.isfinite(tensor).all():
            raise SystemExit(f"{name} does not fit into half precision")
    save_file(halves, path, metadata={"format": "pt"})


def text_tensors(encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The encoder's tensors under the names that every loader knows: `text_model.` first, no buffers."""
    prefix = "text_model."
    named = {n if n.startswith(prefix) else prefix + n: t for n, t in encoder.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}


def diffusers_config(model: UNet2DConditionModel | AutoencoderKL, **changes: object) -> dict[str, object]:
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    return {"_class_name": type(model).__name__, "_diffusers_version": "0.35.0", **config, **changes}


def save(
    out: Path,
    vocabulary: Vocabulary,
    tokenizer: CLIPTokenizer,
    merges: list[tuple[str, str]],
    encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    scale: float,
) -> None:
    """Writes the folder; `scale` makes the latents' spread one and becomes the VAE's scaling factor."""
    for folder in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_json(out / "model_index.json", MODEL_INDEX)
    write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    tokens.save(merges, out / "tokenizer")
    write_json(
        out / "text_encoder" / "config.json",
        {
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "hidden_act": "quick_gelu",
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 6,
            "num_hidden_layers": 12,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": WIDTH,
            "dtype": "float32",
            "vocab_size": len(tokenizer),
        },
    )
    write_weights(out / "text_encoder" / "model.safetensors", text_tensors(encoder))
    write_json(out / "unet" / "config.json", diffusers_config(unet))
    write_weights(out / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict())
    write_json(out / "vae" / "config.json", diffusers_config(vae, scaling_factor=round(scale, 5)))
    write_weights(out / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict())
    made = captions_of(vocabulary, 40, range(CORPUS_COUNT), SHARES, "train")
    (out / "captions.txt").write_text("".join(c.caption + "\n" for c in made), encoding="utf-8")
