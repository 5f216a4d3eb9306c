"""Schedules and the form with two evaluations; numbers are those of section 4.2 of the study."""

from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from surgery.diffusion import decode, encode
from surgery.diffusion.inversion import PLAIN, Rung, cleaner, inverted, rungs_of
from surgery.errors import MethodError
from surgery.guidance.scaling_concept import (
    OBJECT,
    ScalingSettings,
    followed,
    mixed,
    noise_of,
    scale_concept,
    scale_schedule,
    scaled,
    velocity_of,
)

EXACT = replace(PLAIN, renoise=60, most_below=60)
AS_IT_IS = ScalingSettings(scale=1.0, decay=0.0, exit_step=0)


def with_concept(latents: Tensor, timestep: int) -> Tensor:
    """Smooth, bounded, and so weak that a fixed point exists at every step."""
    return torch.tanh(latents.roll(1, 3) * 0.5 + timestep / 1000) + 0.1 * latents


def without(latents: Tensor, timestep: int) -> Tensor:
    return torch.tanh(latents.roll(1, 2) * 0.3 - timestep / 1000)


def both(latents: Tensor, seen: Tensor, rung: Rung) -> tuple[Tensor, Tensor]:
    return without(latents, rung.timestep), with_concept(seen, rung.timestep)


@pytest.fixture(scope="module")
def rungs() -> tuple[Rung, ...]:
    solver = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    solver.set_timesteps(20)
    return rungs_of(solver)


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def path(clean: Tensor, rungs: tuple[Rung, ...]) -> list[Tensor]:
    return inverted(with_concept, clean, rungs, EXACT)


@pytest.mark.parametrize("exit_step", [0, 15])
def test_a_scale_of_one_draws_the_picture_again(  # 14
    path: list[Tensor], clean: Tensor, rungs: tuple[Rung, ...], exit_step: int
) -> None:
    found = followed(both, path, rungs, replace(AS_IT_IS, exit_step=exit_step))
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-10)
    anchored = ScalingSettings(scale=1.0, decay=3.0, exit_step=exit_step, anchored=True)
    torch.testing.assert_close(followed(both, path, rungs, anchored), clean, rtol=0, atol=1e-10)
    fading = followed(both, path, rungs, replace(AS_IT_IS, decay=3.0))
    assert float((fading - clean).norm() / clean.norm()) > 0.1


def test_a_scale_of_nothing_is_sampling_without_the_prompt(  # 14
    path: list[Tensor], rungs: tuple[Rung, ...]
) -> None:
    latents = path[0]
    for rung in rungs:
        latents = cleaner(latents, without(latents, rung.timestep), rung)
    assert torch.equal(followed(both, path, rungs, ScalingSettings(scale=0.0)), latents)


@pytest.mark.parametrize("anchored", [False, True])
def test_two_evaluations_are_the_three_written_by_hand(  # 13
    path: list[Tensor], rungs: tuple[Rung, ...], anchored: bool
) -> None:
    settings = ScalingSettings(scale=3.0, exit_step=12, anchored=anchored)
    latents = path[0]
    for step, rung in enumerate(rungs):
        scale = scale_schedule(settings, len(rungs))[step]
        base, concept = without(latents, rung.timestep), with_concept(latents, rung.timestep)
        noise = base + scale * (concept - base)
        if step < settings.exit_step:
            between = with_concept((latents + path[step]) / 2, rung.timestep)
            noise = noise + scale * (between - concept)
        latents = cleaner(latents, noise, rung)
    torch.testing.assert_close(followed(both, path, rungs, settings), latents, rtol=0, atol=1e-10)


def test_more_of_a_concept_moves_further(path: list[Tensor], clean: Tensor, rungs: tuple[Rung, ...]) -> None:
    moved = [
        float((followed(both, path, rungs, ScalingSettings(scale=one, anchored=True)) - clean).norm())
        for one in (1.0, 2.0, 3.0, 5.0)
    ]
    assert moved == sorted(moved)


def test_a_real_picture_is_drawn_again_and_scaled(exact: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand((2, 3, 32, 32), generator=generator, dtype=torch.float64) * 2 - 1
    models = copy(exact)
    models.vae, models.unet = deepcopy(exact.vae).to(torch.float64), deepcopy(exact.unet)
    models.unet.conv_out.weight.data *= 0.1  # a random U-Net's steps have no fixed point
    rough, close = (
        scale_concept(models, pixels, "a cat", [AS_IT_IS], replace(EXACT, renoise=count), steps=4)
        for count in (0, 40)
    )
    assert max(close.error) < 0.2 * max(rough.error)
    assert max(close.error) < 0.01
    shown = decode(models.vae, encode(models.vae, pixels)[0])
    assert abs(close.again.astype(int) - shown.astype(int)).mean() < 2
    both = scale_concept(models, pixels, "a cat", [OBJECT, AS_IT_IS], steps=4)
    strong, same = both.pictures
    assert strong.shape == (2, 32, 32, 3)
    assert (strong != both.again).any()
    assert (same == both.again).all()


def test_steps_that_the_model_does_not_have_are_refused(exact: Any) -> None:
    pixels = torch.zeros((1, 3, 32, 32))
    with pytest.raises(MethodError, match="steps is 5000"):
        scale_concept(exact, pixels, "a cat", steps=5000)


def test_the_published_schedule_falls_below_one_at_step_21() -> None:
    """ω = 5, γ = 3 over 50 steps: its mean is 1.28, its last entry 0."""
    found = scale_schedule(OBJECT, 50)
    assert (found[0], found[-1], len(found)) == (5.0, 0.0, 50)
    assert found[20] >= 1.0 > found[21]
    assert sum(found) / 50 == pytest.approx(1.28, abs=0.01)


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_an_anchored_scale_of_one_is_one_throughout(decay: float) -> None:
    assert set(scale_schedule(ScalingSettings(scale=1.0, decay=decay, anchored=True), 10)) == {1.0}
    rising = scale_schedule(ScalingSettings(scale=5.0, decay=decay, anchored=True), 10)
    assert rising[0] == 5.0
    assert rising[-1] == (5.0 if decay == 0 else 1.0)


def test_without_decay_the_scale_stays() -> None:
    assert scale_schedule(ScalingSettings(scale=0.5, decay=0.0), 4) == (0.5,) * 4
    assert scale_schedule(ScalingSettings(scale=0.5), 1) == (0.5,)


def test_two_evaluations_are_the_release_s_three() -> None:  # 17
    generator = torch.Generator().manual_seed(0)
    base, concept, concept_mixed = (
        torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64) for _ in range(3)
    )
    weight = 3.2
    guided = base + weight * (concept - base)
    corrected = guided + weight * (concept_mixed - concept)
    torch.testing.assert_close(scaled(base, concept_mixed, weight), corrected, rtol=0, atol=1e-10)


def test_latents_are_mixed_until_the_exit() -> None:  # 15
    latents, path = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    assert torch.equal(mixed(latents, path, 1, 2), torch.full((1, 1, 2, 2), 2.0))
    assert torch.equal(mixed(latents, path, 2, 2), latents)
    # at the start both are the same
    assert torch.equal(mixed(path, path, 0, 2), path)


def test_noise_and_velocity_are_two_ways_of_saying_one_thing() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64) for _ in range(2))
    remaining = 0.3
    latents = remaining**0.5 * clean + 0.7**0.5 * noise
    velocity = remaining**0.5 * noise - 0.7**0.5 * clean
    torch.testing.assert_close(noise_of(velocity, latents, remaining), noise, rtol=0, atol=1e-10)
    torch.testing.assert_close(velocity_of(noise, latents, remaining), velocity, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ScalingSettings(scale=float("nan")), "scale is nan"),
        (ScalingSettings(decay=-1.0), r"decay is -1\.0"),
        (ScalingSettings(exit_step=-1), "exit_step is -1"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(exact: Any, settings: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        scale_concept(exact, torch.zeros((1, 3, 32, 32)), "a cat", [settings], steps=2)


def test_a_path_that_starts_from_pure_noise_is_refused(exact: Any) -> None:
    models = copy(exact)
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    models.scheduler = DDIMScheduler.from_config({**exact.scheduler.config, **zero})
    with pytest.raises(MethodError, match="starts from pure noise"):
        scale_concept(models, torch.zeros((1, 3, 32, 32)), "a cat", steps=2)
