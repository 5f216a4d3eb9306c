"""Noise of each purpose, and noised pictures, against the scheduler."""

from dataclasses import replace
from typing import Any

import torch

from surgery.checkpoint.components import ddim_like
from surgery.diffusion import noise_schedule
from surgery.methods.cad.nouns import Pairs
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.settings import AttributionSettings
from tests.methods.cad.conftest import CAT, QUICK


def test_other_purposes_and_seeds_give_other_noise(models: Any, pairs: Pairs) -> None:
    for other in (
        pairs_of(models, [CAT], QUICK, purpose="control"),
        pairs_of(models, [replace(CAT, seed=4)], QUICK),
    ):
        assert not torch.allclose(other[0].noisy, pairs.noisy, atol=0.1)


def test_pictures_are_noised_as_the_scheduler_does_with_timesteps_of_every_part(models: Any) -> None:
    settings = AttributionSettings(objective="denoise", pictures=3, graded_steps=4, sampling_steps=3)
    (pairs,) = pairs_of(models, [CAT], settings)
    assert (len(pairs), pairs.samples, pairs.towards) == (12, 3, -1)
    parts = pairs.timesteps.reshape(3, 4) // 250
    assert (parts.sort(1).values == torch.arange(4)).all()
    # all twelve twelfths of the schedule have one
    assert sorted((pairs.timesteps * 12 // 1000).tolist()) == list(range(12))
    schedule = noise_schedule(models.scheduler)
    remaining = schedule.remaining[pairs.timesteps].sqrt().reshape(-1, 1, 1, 1)
    clean = (pairs.noisy - (1 - remaining**2).sqrt() * pairs.target) / remaining
    first = clean.reshape(3, 4, 4, 8, 8)
    steady = pairs.timesteps.reshape(3, 4) < 600  # later ones divide by next to nothing
    for number in range(3):
        same = first[number][steady[number]]
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-2, atol=1e-2)


def test_with_as_many_timesteps_as_the_sampler_has_its_own_are_taken(models: Any) -> None:
    settings = AttributionSettings(
        objective="denoise", pictures=2, graded_steps=3, sampling_steps=3, staggered=False
    )
    (pairs,) = pairs_of(models, [CAT], settings)
    solver = ddim_like(models.scheduler)
    solver.set_timesteps(3)
    assert pairs.timesteps.tolist() == solver.timesteps.tolist() * 2


def test_pictures_have_timesteps_of_their_own_unless_asked_as_published(models: Any) -> None:
    """As many timesteps as the sampler has steps, by chance: they still differ between pictures."""
    settings = AttributionSettings(objective="denoise", pictures=2, graded_steps=3, sampling_steps=3)
    (pairs,) = pairs_of(models, [CAT], settings)
    assert len(pairs.timesteps.unique()) == 6
