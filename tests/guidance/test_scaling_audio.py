"""Scaling what a sound shows, on a tiny random pipeline: the library's own path, there and back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
)
from torch import Tensor
from transformers import (
    ClapConfig,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    T5Config,
    T5EncoderModel,
)

from surgery.checkpoint.components import with_head
from surgery.diffusion.inversion import PLAIN, InversionSettings
from surgery.errors import MethodError
from surgery.guidance.scaling_audio import scale_sound
from surgery.guidance.scaling_concept import OBJECT, ScalingSettings

AS_IT_IS = ScalingSettings(scale=1.0, decay=0.0, exit_step=0)
CLOSE = InversionSettings(renoise=40, most_below=40, average=(0, 0), average_above=(0, 0), regularise=False)


class Words:
    """Stands in for both tokenizers: a number for each word."""

    model_max_length = 12

    def __call__(self, text: Any, padding: Any = True, max_length: int | None = None, **_: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        ids = [[0, *(3 + sum(map(ord, word)) % 90 for word in one.split()), 2] for one in texts]
        length = max(map(len, ids))
        rows = torch.tensor([row + [1] * (length - len(row)) for row in ids])
        return SimpleNamespace(input_ids=rows, attention_mask=(rows != 1).long())

    def batch_decode(self, rows: Any) -> list[str]:
        return [""] * len(rows)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    text = {
        "vocab_size": 100, "hidden_size": 8, "projection_dim": 8, "num_attention_heads": 1,
        "num_hidden_layers": 1, "intermediate_size": 16, "pad_token_id": 1, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    audio = {
        "spec_size": 8, "window_size": 4, "num_mel_bins": 8, "hidden_size": 8,
        "patch_embeds_hidden_size": 8, "patch_size": 1, "patch_stride": 1, "depths": [1, 1],
        "num_attention_heads": [1, 1], "mlp_ratio": 1.0,
    }  # fmt: skip
    language = GPT2Config(n_embd=16, n_head=2, n_layer=1, n_positions=40, vocab_size=100, max_new_tokens=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = AudioLDM2UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(16, 16),
        )
        unet.conv_out.weight.data *= 0.05  # a random U-Net's steps have no fixed point
        parts = {
            "vae": AutoencoderKL(block_out_channels=[8], in_channels=1, out_channels=1, norm_num_groups=8),
            "text_encoder": ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)),
            "text_encoder_2": T5EncoderModel(
                T5Config(vocab_size=100, d_ff=16, d_kv=8, d_model=16, num_heads=2, num_layers=1)
            ),
            "projection_model": AudioLDM2ProjectionModel(16, 16, 16),
            "language_model": GPT2LMHeadModel(language),
            "unet": unet,
        }
    for part in parts.values():
        part.eval().requires_grad_(False)
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return AudioLDM2Pipeline(
        **parts,
        tokenizer=Words(),
        tokenizer_2=Words(),
        feature_extractor=None,
        scheduler=scheduler,
        vocoder=None,  # mel latents in, mel latents out
    )


@pytest.fixture
def sounds() -> Tensor:
    return torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(1))


def test_the_way_forward_is_the_library_s_own(pipeline: Any, sounds: Tensor) -> None:
    found = scale_sound(pipeline, sounds, "a dog barks", [AS_IT_IS], PLAIN, steps=4)
    (same,) = found.latents
    torch.testing.assert_close(same, found.again, rtol=0, atol=1e-5)
    features, mask, generated = pipeline.encode_prompt(
        "a dog barks", "cpu", 1, False, transcription="a dog barks"
    )
    solver = DDIMScheduler.from_config(pipeline.scheduler.config)
    solver.set_timesteps(4)
    without = scale_sound(
        pipeline, sounds, "a dog barks", [ScalingSettings(scale=0.0, decay=0.0)], PLAIN, steps=4
    )
    assert float((without.latents[0] - same).abs().max()) > 1e-4
    latents = _noise_of(pipeline, sounds, features, mask, generated, solver)
    with torch.no_grad():
        for timestep in solver.timesteps:
            noise = _predicted(pipeline, latents, timestep, features, mask, generated)
            latents = solver.step(noise, timestep, latents).prev_sample
    torch.testing.assert_close(found.again, latents, rtol=0, atol=1e-4)


def _predicted(
    pipeline: Any, latents: Tensor, timestep: Any, features: Tensor, mask: Tensor, generated: Tensor
) -> Tensor:
    found: Tensor = pipeline.unet(
        latents,
        timestep,
        encoder_hidden_states=generated.expand(2, -1, -1),
        encoder_hidden_states_1=features.expand(2, -1, -1),
        encoder_attention_mask_1=mask.expand(2, -1),
        return_dict=False,
    )[0]
    return found


def _noise_of(
    pipeline: Any, sounds: Tensor, features: Tensor, mask: Tensor, generated: Tensor, solver: Any
) -> Tensor:
    """DDIM backwards by hand, the noise of each step predicted at its own timestep."""
    remaining, stride = solver.alphas_cumprod, 1000 // 4
    latents = sounds
    with torch.no_grad():
        for timestep in reversed(solver.timesteps.tolist()):
            noise = _predicted(pipeline, latents, timestep, features, mask, generated)
            noisy = remaining[timestep]
            clean = remaining[timestep - stride] if timestep >= stride else solver.final_alpha_cumprod
            kept = (noisy / clean).sqrt()
            latents = kept * latents + ((1 - noisy).sqrt() - kept * (1 - clean).sqrt()) * noise
    return latents


def test_more_passes_come_closer_and_a_scale_changes_the_sound(pipeline: Any, sounds: Tensor) -> None:
    rough = scale_sound(pipeline, sounds, "a dog barks", [AS_IT_IS], PLAIN, steps=4)
    close = scale_sound(pipeline, sounds, "a dog barks", [AS_IT_IS, OBJECT], CLOSE, steps=4)
    assert max(close.error) < 0.2 * max(rough.error)
    same, strong = close.latents
    assert float((same - sounds).norm() / sounds.norm()) < 0.01
    assert float((strong - sounds).norm() / sounds.norm()) > 2 * float((same - sounds).norm() / sounds.norm())


def test_a_language_model_without_a_head_is_named_and_can_be_given_one(pipeline: Any, sounds: Tensor) -> None:
    whole = pipeline.language_model
    headless = whole.transformer
    assert isinstance(headless, GPT2Model)
    expected = scale_sound(pipeline, sounds, "a dog", [AS_IT_IS], PLAIN, steps=2)
    try:
        pipeline.language_model = headless
        with pytest.raises(MethodError, match="is GPT2Model, which the library cannot generate with"):
            scale_sound(pipeline, sounds, "a dog", [AS_IT_IS], PLAIN, steps=2)
        pipeline.language_model = with_head(headless)
        found = scale_sound(pipeline, sounds, "a dog", [AS_IT_IS], PLAIN, steps=2)
    finally:
        pipeline.language_model = whole
    assert torch.equal(found.again, expected.again)


def test_settings_that_cannot_be_carried_out_are_refused(pipeline: Any, sounds: Tensor) -> None:
    with pytest.raises(MethodError, match="scale is nan"):
        scale_sound(pipeline, sounds, "a dog", [ScalingSettings(scale=float("nan"))], steps=2)
