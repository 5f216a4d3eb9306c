"""What SDXL's U-Net reads, and the pictures it draws, against the stock pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import offload, predict_noise, read_prompts, sample, size_conditions
from surgery.diffusion.conditions import read_without
from surgery.errors import SurgeryError

PROMPTS = ["a photo of a cat", "the image of a female doctor", "a photo of a cat"]


@pytest.fixture(scope="module")
def ours(tiny_xl: Path) -> Any:
    return load_pipeline(tiny_xl)


@pytest.fixture(scope="module")
def stock(tiny_xl: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_prompts_are_read_as_the_stock_pipeline_reads_them(ours: Any, stock: Any, clip_skip: int) -> None:
    found = read_prompts(ours, PROMPTS, clip_skip)
    features, negative, pooled, negative_pooled = stock.encode_prompt(
        PROMPTS, clip_skip=clip_skip or None, negative_prompt=None
    )
    assert found.pooled is not None
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.pooled, pooled)
    without = read_without(ours, "")
    assert without.pooled is not None
    assert torch.equal(without.features, negative[:1])
    assert torch.equal(without.pooled, negative_pooled[:1])


def test_a_negative_prompt_is_read_and_not_zero(ours: Any, stock: Any) -> None:
    _, negative, _, pooled = stock.encode_prompt("a", negative_prompt="a dog")
    found = read_without(ours, "a dog")
    torch.testing.assert_close(found.features, negative)
    torch.testing.assert_close(found.pooled, pooled)


def test_sizes_are_those_of_the_stock_pipeline(stock: Any) -> None:
    pooled = torch.zeros(2, 24)
    sizes = stock._get_add_time_ids((64, 32), (0, 0), (64, 32), torch.float32, 24)
    assert torch.equal(size_conditions(pooled, 64, 32)["time_ids"], sizes.expand(2, -1))


def test_long_prompts_are_read_in_pieces_by_both_encoders(ours: Any) -> None:
    found = read_prompts(ours, ["a cat", "a cat " * 60], in_pieces=True)
    times = found.features.shape[1] // 77
    assert times > 1
    short = read_prompts(ours, ["a cat"])
    assert found.pooled is not None
    assert short.pooled is not None
    torch.testing.assert_close(found.features[:1, :77], short.features)
    torch.testing.assert_close(found.pooled[:1], short.pooled)
    assert read_without(ours, "a dog").as_long_as(found).features.shape[1] == 77 * times
    words = ours.tokenizer("a cat " * 60, add_special_tokens=False, verbose=False).input_ids
    last = read_prompts(ours, [ours.tokenizer.decode(words[75 * (times - 1) :])])
    torch.testing.assert_close(found.features[1:, -77:], last.features)
    drawn = sample(ours, ["a cat " * 60], [3], steps=2, negative="a dog " * 100, in_pieces=True)
    assert drawn.shape == (1, 32, 32, 3)


def test_repeating_what_is_read_changes_no_picture(ours: Any) -> None:
    short = read_prompts(ours, ["a cat"])
    twice = short.as_long_as(read_prompts(ours, ["a cat " * 60], in_pieces=True))
    assert twice.features.shape[1] > 77
    noisy, time = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    added = short.added(32, 32)
    one, other = (
        predict_noise(ours.unet, noisy, time, reading.features, added) for reading in (short, twice)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_pictures_are_those_of_the_stock_pipeline(ours: Any, stock: Any, guidance: float) -> None:
    found = sample(ours, ["a photo of a cat"], [3], steps=3, guidance=guidance)
    expected = stock(
        "a photo of a cat",
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        height=32,
        width=32,
        output_type="np",
    ).images
    assert abs(found.astype(float) - (expected * 255).round()).max() <= 1


def test_an_offloaded_sdxl_brings_both_text_encoders(tiny_xl: Path, ours: Any) -> None:
    pipeline = load_pipeline(tiny_xl)
    moved: list[Any] = []
    offload(pipeline, "cpu", move=lambda module, device: moved.append(module))
    assert (sample(pipeline, ["a"], [0], steps=1) == sample(ours, ["a"], [0], steps=1)).all()
    assert any(module is pipeline.text_encoder_2 for module in moved)


def test_a_clip_skip_that_leaves_no_block_is_refused(ours: Any) -> None:
    with pytest.raises(SurgeryError, match="clip_skip is 6; this text encoder has 7 blocks"):
        read_prompts(ours, ["a"], 6)
