"""Schedules and the form with two evaluations; numbers are those of section 4.2 of the study."""

import pytest
import torch

from surgery.guidance.scaling_concept import (
    OBJECT,
    ScalingSettings,
    mixed,
    noise_of,
    scale_schedule,
    scaled,
    velocity_of,
)


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
