"""A U-Net in other widths computes nearly the same, and wider levels are no mere copies."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (16, 32, 64, 64)


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "pocket")
    sys.modules.pop("widen", None)
    from widen import widened

    return widened


@pytest.fixture(scope="module")
def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return made.eval()


@torch.no_grad()
def answer(unet: Any) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 8, generator=drawn)
    text = torch.randn(3, 5, 12, generator=drawn)
    found: torch.Tensor = unet(latents, torch.tensor([10, 400, 900]), text).sample
    return found


def difference(unet: Any, other: Any) -> float:
    before = answer(unet)
    return float((answer(other) - before).norm() / before.norm())


def test_the_same_widths_are_the_same_network(widened: Any, unet: Any) -> None:
    assert widened(unet, WIDTHS) is unet


@pytest.mark.parametrize("widths", [(16, 32, 128, 128), (16, 64, 128, 128), (16, 48, 64, 64)])
def test_a_wider_network_answers_nearly_the_same(widened: Any, unet: Any, widths: Any) -> None:
    wider = widened(unet, widths)
    assert tuple(wider.config.block_out_channels) == widths
    assert list(wider.state_dict()) == list(unet.state_dict())
    assert difference(unet, wider) < 0.1


def test_doubling_every_level_is_exact_but_for_the_waves_of_time(widened: Any, unet: Any) -> None:
    timeless = copy.deepcopy(unet)
    for weight in timeless.time_embedding.linear_2.parameters():
        weight.data.zero_()
    assert difference(timeless, widened(timeless, [2 * width for width in WIDTHS])) < 1e-4


def test_copies_of_a_channel_have_unequal_parts(widened: Any, unet: Any) -> None:
    weight = widened(unet, (16, 32, 128, 128)).state_dict()["mid_block.resnets.0.conv2.weight"]
    columns = weight.flatten(2).transpose(0, 1).flatten(1)
    assert len(torch.unique(columns, dim=0)) == len(columns)
