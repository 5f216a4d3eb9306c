"""Points of the sampler's paths and noised pictures, against the stock sampler and the scheduler."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.checkpoint.components import ddim_like
from surgery.diffusion import derived_seed, encode_prompts, noise_schedule, predict_noise
from surgery.methods.cad.nouns import CadConcept, Pairs
from surgery.methods.cad.pairs import graded_steps, pairs_of
from surgery.methods.cad.settings import AttributionSettings
from tests.methods.cad.conftest import CAT, QUICK


def walk(models: Any, prompt: str, seed: int, steps: int, guidance: float) -> list[tuple[int, torch.Tensor]]:
    """One path, plainly: timestep and latents before each step, and what is left at the end."""
    solver = ddim_like(models.scheduler)
    solver.set_timesteps(steps)
    text, without = (encode_prompts(models.tokenizer, models.text_encoder, [one]) for one in (prompt, ""))
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    points = []
    with torch.no_grad():
        for timestep in solver.timesteps:
            points.append((int(timestep), latents[0].clone()))
            plain = predict_noise(models.unet, latents, timestep, without)
            told = predict_noise(models.unet, latents, timestep, text)
            latents = solver.step(plain + guidance * (told - plain), timestep, latents, return_dict=False)[0]
    return [*points, (-1, latents[0])]


def test_steps_are_in_the_middle_of_equal_parts() -> None:
    assert graded_steps(AttributionSettings(sampling_steps=20, graded_steps=10)) == tuple(range(1, 20, 2))
    assert graded_steps(AttributionSettings(sampling_steps=50, graded_steps=5)) == (5, 15, 25, 35, 45)
    assert graded_steps(AttributionSettings(sampling_steps=4, graded_steps=4)) == (0, 1, 2, 3)


def test_points_lie_on_the_plain_sampler_s_paths(models: Any, pairs: Pairs) -> None:
    assert (len(pairs), pairs.samples) == (4, 2)
    assert pairs.sample.tolist() == pairs.prompt.tolist() == [0, 0, 1, 1]
    for number, prompt in enumerate(CAT.prompts):
        plain = walk(models, prompt, derived_seed(3, "attribution", "path", number), 4, 3.0)
        for place, step in enumerate((1, 3)):
            row = 2 * number + place
            assert int(pairs.timesteps[row]) == plain[step][0]
            torch.testing.assert_close(pairs.noisy[row], plain[step][1], rtol=1e-4, atol=1e-4)


def predictions(models: Any, pairs: Pairs, prompt: str) -> torch.Tensor:
    text = encode_prompts(models.tokenizer, models.text_encoder, [prompt]).expand(len(pairs), -1, -1)
    with torch.no_grad():
        return predict_noise(models.unet, pairs.noisy, pairs.timesteps, text)


@pytest.mark.parametrize("base", ["", "a photo"])
def test_targets_are_what_is_predicted_for_the_base_prompt(models: Any, base: str) -> None:
    (pairs,) = pairs_of(models, [CAT], replace(QUICK, base_prompt=base))
    torch.testing.assert_close(pairs.target, predictions(models, pairs, base), rtol=1e-4, atol=1e-4)


def test_shifted_points_are_one_step_cleaner_than_their_timestep(models: Any) -> None:
    (pairs,) = pairs_of(models, [CAT], replace(QUICK, pairing="shifted"))
    plain = walk(models, CAT.prompts[0], derived_seed(3, "attribution", "path", 0), 4, 3.0)
    assert int(pairs.timesteps[1]) == plain[3][0]
    torch.testing.assert_close(pairs.noisy[1], plain[4][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairs.target, predictions(models, pairs, ""), rtol=1e-4, atol=1e-4)


def test_the_published_scheme_has_a_path_of_its_own_for_every_step(models: Any) -> None:
    published = AttributionSettings(sampling_steps=4, graded_steps=4, pairing="shifted", restart=True)
    (pairs,) = pairs_of(models, [CAT], published)
    assert (len(pairs), pairs.samples) == (4, 4)
    for number in range(4):
        seed, prompt = derived_seed(3, "attribution", "path", number), CAT.prompts[number % 2]
        plain = walk(models, prompt, seed, 4, 3.0)
        assert int(pairs.timesteps[number]) == plain[number][0]
        torch.testing.assert_close(pairs.noisy[number], plain[number + 1][1], rtol=1e-4, atol=1e-4)


def test_concepts_that_share_the_sampler_get_the_pairs_they_get_alone(models: Any, pairs: Pairs) -> None:
    dog = CadConcept(name="dog", prompts=("a photo of a dog",), seed=4)
    together = pairs_of(models, [dog, CAT], QUICK, batch=3)
    alone = pairs_of(models, [dog], QUICK)[0]
    torch.testing.assert_close(together[0].noisy, alone.noisy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1].noisy, pairs.noisy, rtol=1e-4, atol=1e-4)
    assert together[1].prompts == CAT.prompts


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
    settings = AttributionSettings(objective="denoise", pictures=2, graded_steps=3, sampling_steps=3)
    (pairs,) = pairs_of(models, [CAT], settings)
    solver = ddim_like(models.scheduler)
    solver.set_timesteps(3)
    assert pairs.timesteps.tolist() == solver.timesteps.tolist() * 2
