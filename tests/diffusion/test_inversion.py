"""Inversion of DDIM on a map that contracts, in float64; numbers are those of section 4.2 of the study."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from surgery.diffusion.inversion import (
    PLAIN,
    InversionSettings,
    Rung,
    cleaner,
    inverted,
    noisier,
    regularised,
    rungs_of,
)

STEPS = 20


def solver(steps: int = STEPS) -> DDIMScheduler:
    made = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    made.set_timesteps(steps)
    return made


@pytest.fixture
def rungs() -> tuple[Rung, ...]:
    return rungs_of(solver())


@pytest.fixture
def clean() -> Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def predict(latents: Tensor, timestep: int) -> Tensor:
    """Smooth, bounded, and so weak that a fixed point exists at every step."""
    return torch.tanh(latents.roll(1, 3) * 0.5 + timestep / 1000) + 0.1 * latents


def sampled(latents: Tensor, rungs: tuple[Rung, ...]) -> Tensor:
    for rung in rungs:
        latents = cleaner(latents, predict(latents, rung.timestep), rung)
    return latents


def test_a_step_forward_undoes_a_step_backward(clean: Tensor, rungs: tuple[Rung, ...]) -> None:  # 13
    noise = torch.randn_like(clean)
    for rung in rungs:
        torch.testing.assert_close(
            cleaner(noisier(clean, noise, rung), noise, rung), clean, rtol=0, atol=1e-10
        )


def test_steps_are_those_of_the_library_s_solver(clean: Tensor, rungs: tuple[Rung, ...]) -> None:
    own = solver()
    latents = clean
    for rung, timestep in zip(rungs, own.timesteps, strict=True):
        assert rung.timestep == int(timestep)
        noise = predict(latents, rung.timestep)
        by_library = own.step(noise, timestep, latents, return_dict=False)[0]
        latents = cleaner(latents, noise, rung)
        # its table of noise levels is in float32
        torch.testing.assert_close(latents, by_library, rtol=1e-5, atol=1e-5)


def exactly(renoise: int) -> InversionSettings:
    return replace(PLAIN, renoise=renoise, most_below=renoise)


def test_more_passes_meet_the_fixed_point_better(clean: Tensor, rungs: tuple[Rung, ...]) -> None:  # 16
    errors = []
    for renoise in (0, 1, 2, 4, 8, 40):
        path = inverted(predict, clean, rungs, exactly(renoise))
        residual = [
            float((above - noisier(below, predict(above, rung.timestep), rung)).norm())
            for above, below, rung in zip(path, path[1:], rungs, strict=False)
        ]
        errors.append(max(residual))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


def test_the_sampler_comes_back_to_the_picture(clean: Tensor, rungs: tuple[Rung, ...]) -> None:  # 14, 15
    path = inverted(predict, clean, rungs, exactly(60))
    assert len(path) == len(rungs) + 1
    assert torch.equal(path[-1], clean)
    torch.testing.assert_close(sampled(path[0], rungs), clean, rtol=0, atol=1e-10)
    rough = inverted(predict, clean, rungs, PLAIN)
    assert float((sampled(rough[0], rungs) - clean).norm()) > 1e-3


def test_passes_end_when_the_latents_no_longer_move(clean: Tensor, rungs: tuple[Rung, ...]) -> None:
    calls = 0

    def counted(latents: Tensor, timestep: int) -> Tensor:
        nonlocal calls
        calls += 1
        return predict(latents, timestep)

    path = inverted(counted, clean, rungs, replace(exactly(60), tolerance=1e-3))
    assert calls < 10 * STEPS
    torch.testing.assert_close(sampled(path[0], rungs), clean, rtol=0, atol=0.05)


def test_averages_are_of_the_passes_of_the_range(clean: Tensor) -> None:
    """One step, K = 2, passes 1 and 2 averaged: by hand."""
    (rung,) = rungs_of(solver(1))
    settings = InversionSettings(renoise=2, average=(1, 3), average_above=(1, 3), regularise=False)
    noises, latents = [], clean
    for _ in range(3):
        noises.append(predict(latents, rung.timestep))
        latents = noisier(clean, noises[-1], rung)
    expected = noisier(clean, (noises[1] + noises[2]) / 2, rung)
    found = inverted(predict, clean, [rung], settings)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_with_the_published_settings_averages_and_regularising_act_below_250_only(clean: Tensor) -> None:
    rungs = rungs_of(solver(50))
    seen: dict[int, int] = {}

    def counted(latents: Tensor, timestep: int) -> Tensor:
        seen[timestep] = seen.get(timestep, 0) + 1
        return predict(latents, timestep)

    inverted(counted, clean, rungs, InversionSettings())
    # K = 1: two passes; a third evaluation, of the reference, where predictions are regularised
    assert {timestep for timestep, count in seen.items() if count == 3} == set(range(1, 250, 20))
    assert {count for timestep, count in seen.items() if timestep > 250} == {2}


def autocorrelation(noise: Tensor) -> float:
    rolled = [(noise * noise.roll(amount, 3)).mean((2, 3)).abs().mean() for amount in (1, 2, 3)]
    return float(torch.stack(rolled).mean())


def test_regularised_predictions_are_whiter() -> None:
    generator = torch.Generator().manual_seed(0)
    white = torch.randn((1, 4, 16, 16), generator=generator)
    smooth = (white + white.roll(1, 3) + white.roll(2, 3)) / 3**0.5
    reference = torch.randn((1, 4, 16, 16), generator=generator)
    found = regularised(smooth, reference, generator)
    assert autocorrelation(found) < 0.8 * autocorrelation(smooth)
    assert float((found - smooth).norm() / smooth.norm()) < 0.5
    assert bool(torch.isfinite(found).all())
