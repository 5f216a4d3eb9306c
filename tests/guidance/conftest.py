"""The tiny Stable Diffusion in float64, and low-rank patches of its U-Net."""

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.delta import Delta, LowRank
from surgery.patch import Patch, Term, make_patch

LAYERS = (
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight",
    "unet/down_blocks.0.resnets.0.conv1.weight",
    "unet/down_blocks.0.resnets.0.time_emb_proj.weight",
    "unet/down_blocks.0.downsamplers.0.conv.weight",
    "unet/up_blocks.3.attentions.0.proj_in.weight",
)


@pytest.fixture(scope="package")
def exact(tiny_pipeline: Path) -> Any:
    """The pipeline in float64; never changed by a test."""
    models = load_pipeline(tiny_pipeline, dtype=torch.float64)
    models.text_encoder.to(torch.float64)
    return models


def patch_of(base: Path, seed: int) -> Patch:
    checkpoint = open_checkpoint(base)
    generator = torch.Generator().manual_seed(seed)
    terms = {}
    for name in LAYERS:
        rows, *inputs = checkpoint.shapes[name]
        width = int(torch.tensor(inputs).prod())
        left, right = (torch.randn(size, generator=generator) for size in ((rows, 2), (2, width)))
        terms[name] = LowRank(0.3 * left, right / width**0.5)
    return make_patch([Term(delta=Delta(terms), strength=0.5, source="test")], checkpoint)


@pytest.fixture(scope="package")
def patches(tiny_pipeline: Path) -> list[Patch]:
    return [patch_of(tiny_pipeline, 1), patch_of(tiny_pipeline, 2)]
