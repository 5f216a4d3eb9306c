"""The tiny pipeline with a U-Net of two levels, loaded once; tests may swap its scheduler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from surgery.checkpoint.components import load_scheduler, load_text_encoder, load_tokenizer, load_vae


@pytest.fixture(scope="session")
def loaded(tiny_pipeline: Path) -> Any:
    pipeline = StableDiffusionPipeline(
        vae=load_vae(tiny_pipeline),
        text_encoder=load_text_encoder(tiny_pipeline),
        tokenizer=load_tokenizer(tiny_pipeline),
        unet=small_unet(),
        scheduler=load_scheduler(tiny_pipeline),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(loaded: Any) -> Iterator[Any]:
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler


def small_unet() -> Any:
    """One cross-attention each way: a forward pass takes milliseconds."""
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
