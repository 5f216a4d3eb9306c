"""The tiny pipeline with a U-Net of two levels, which draws a picture in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from surgery.checkpoint.components import load_scheduler, load_text_encoder, load_tokenizer, load_vae


def small_pipeline(tiny: Path) -> Any:
    """All but the U-Net come from the tiny pipeline's folder."""
    pipeline = StableDiffusionPipeline(
        vae=load_vae(tiny),
        text_encoder=load_text_encoder(tiny),
        tokenizer=load_tokenizer(tiny),
        unet=_unet(),
        scheduler=load_scheduler(tiny),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _unet() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    return unet.eval().requires_grad_(False)
