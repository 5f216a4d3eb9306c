"""A random SDXL and a random Stable Diffusion 2.x of a few hundred kilobytes, as diffusers folders.

Topology and key set are those of the families (SDXL: three levels, two text encoders, pooled feature, sizes;
2.x: 23 text blocks, linear projections, velocity); widths and the second encoder's depth are not. The
tokenizer is the tiny one; SDXL's second pads with another token than its first, as 2.x does.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.support import tiny

WIDTH_2, BLOCKS_2, PROJECTION = 40, 7, 24


def build_xl(folder: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a tiny SDXL into ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline = StableDiffusionXLPipeline(
            vae=tiny._vae(),
            text_encoder=_roughened(CLIPTextModel(_text(32, 12, "quick_gelu", 32))),
            text_encoder_2=_roughened(
                CLIPTextModelWithProjection(_text(WIDTH_2, BLOCKS_2, "gelu", PROJECTION))
            ),
            tokenizer=tiny._tokenizer(folder / "tokenizer"),
            tokenizer_2=tiny._tokenizer(folder / "tokenizer_2"),
            unet=_roughened(_unet_xl()),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )
    return _written(pipeline, folder, dtype, {"tokenizer": tiny.END, "tokenizer_2": "!"})


def build_v2(folder: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a tiny Stable Diffusion 2.x that predicts the velocity into ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        scheduler = tiny._scheduler()
        scheduler.register_to_config(prediction_type="v_prediction")
        pipeline = StableDiffusionPipeline(
            vae=tiny._vae(),
            text_encoder=_roughened(CLIPTextModel(_text(32, 23, "gelu", 16))),
            tokenizer=tiny._tokenizer(folder / "tokenizer"),
            unet=_roughened(_unet_v2()),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _written(pipeline, folder, dtype, {"tokenizer": "!"})


def _text(width: int, blocks: int, activation: str, projection: int) -> CLIPTextConfig:
    size = len(tiny._vocabulary())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=projection,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def _unet_xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=tiny.PICTURE_SIZE // 4,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32 + WIDTH_2,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=PROJECTION + 6 * 8,
    )


def _unet_v2() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=tiny.PICTURE_SIZE // 4,
        block_out_channels=(8, 16, 24, 24),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
    )


def _roughened(model: Any) -> Any:
    tiny._roughen(model)
    return model


def _written(pipeline: Any, folder: Path, dtype: torch.dtype, pads: dict[str, str]) -> Path:
    pipeline.to(dtype=dtype).save_pretrained(folder)
    for weights in folder.glob("text_encoder*/model.safetensors"):
        prefix = "text_model."
        spelled = {
            key if key.startswith("text_projection") else prefix + key.removeprefix(prefix): value
            for key, value in load_file(weights).items()
        }
        save_file(spelled, weights, metadata={"format": "pt"})
    for name, pad in pads.items():
        tiny._write_tokenizer(folder / name)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            path = folder / name / file
            path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": pad}, indent=2))
    return folder
