"""The tiny pipeline's models for tests of methods: loaded once in float32, never changed by a test.

Import the fixtures into a folder's ``conftest.py``.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from surgery.checkpoint.components import load_scheduler, load_text_encoder, load_tokenizer, load_vae
from surgery.methods.emcid import EmcidModels


@pytest.fixture(scope="session")
def tokenizer(tiny_pipeline: Path) -> Any:
    return load_tokenizer(tiny_pipeline)


@pytest.fixture(scope="session")
def encoder(tiny_pipeline: Path) -> Any:
    return load_text_encoder(tiny_pipeline)


@pytest.fixture(scope="session")
def models(tiny_pipeline: Path, tokenizer: Any, encoder: Any) -> EmcidModels:
    """All parts, with a U-Net of two levels: a forward pass takes milliseconds."""
    return EmcidModels(
        tokenizer=tokenizer,
        text_encoder=encoder,
        unet=small_unet(),
        vae=load_vae(tiny_pipeline),
        scheduler=load_scheduler(tiny_pipeline),
    )


def small_unet() -> Any:
    """Cross-attention of the tiny encoder's width, one on each way."""
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
