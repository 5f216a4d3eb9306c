"""Points of the sampler's paths, against the stock sampler and the scheduler."""

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from surgery.checkpoint.components import ddim_like
from surgery.diffusion import derived_seed, encode_prompts, noise_schedule, predict_noise
from surgery.methods.cad.nouns import CadConcept, Pairs
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.paths import graded_steps, sampler_rows, staggered_steps
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


def test_staggered_paths_are_looked_at_side_by_side_and_in_turns() -> None:
    settings = AttributionSettings(trajectories=8, sampling_steps=8, graded_steps=2)
    found = staggered_steps(settings)
    assert [graded for graded, _ in found] == [
        part for part in ((0, 1), (2, 3), (4, 5), (6, 7)) for _ in "ab"
    ]
    assert [behind for _, behind in found] == [0.25, 0.75] * 4
    # every step is looked at as often as any other where the paths are as many as it takes
    whole = [step for graded, _ in staggered_steps(AttributionSettings()) for step in graded]
    assert {whole.count(step) for step in range(8)} == {6}


@pytest.mark.parametrize(
    ("trajectories", "steps", "graded"),
    [
        (1, 8, [(4, 5)]),
        (2, 8, [(2, 3), (6, 7)]),
        (5, 8, [(0, 1), (2, 3), (4, 5), (4, 5), (6, 7)]),
        (3, 5, [(0, 1), (2, 3), (0, 4)]),
    ],
)
def test_fewer_staggered_paths_still_spread_over_the_way(
    trajectories: int, steps: int, graded: list[tuple[int, ...]]
) -> None:
    settings = AttributionSettings(trajectories=trajectories, sampling_steps=steps, graded_steps=2)
    assert [seen for seen, _ in staggered_steps(settings)] == graded


def test_staggered_paths_pass_timesteps_between_each_other_s(models: Any) -> None:
    settings = AttributionSettings(trajectories=8, sampling_steps=4, graded_steps=1)
    (pairs,) = pairs_of(models, [CAT], settings)
    # eight points in the middle of as many equal parts of all timesteps, whatever the seeds
    assert sorted(pairs.timesteps.tolist()) == [62, 187, 312, 437, 562, 687, 812, 937]
    assert pairs.timesteps.tolist() == [937, 812, 687, 562, 437, 312, 187, 62]
    assert pairs.prompt.tolist() == [0, 1] * 4
    (other,) = pairs_of(models, [replace(CAT, seed=9)], settings)
    assert torch.equal(other.timesteps, pairs.timesteps)
    torch.testing.assert_close(pairs.target, predictions(models, pairs, ""), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trajectories", [4, 3])
def test_antithetic_paths_start_from_one_noise_and_its_negative(models: Any, trajectories: int) -> None:
    settings = AttributionSettings(trajectories=trajectories, sampling_steps=1, graded_steps=1)
    (pairs,) = pairs_of(models, [CAT], settings)
    assert torch.equal(pairs.noisy[1], -pairs.noisy[0])
    assert not torch.equal(pairs.noisy[2].abs(), pairs.noisy[0].abs())
    # two that mirror each other are one draw; the last one may be alone
    assert pairs.sample.tolist() == [0, 0, 1, 1][:trajectories]
    assert pairs.samples == settings.samples == 2
    (alone,) = pairs_of(models, [CAT], replace(settings, antithetic=False))
    assert alone.samples == trajectories
    assert torch.equal(alone.noisy[0], pairs.noisy[0])
    assert torch.equal(alone.noisy[2], pairs.noisy[2])
    assert not torch.equal(alone.noisy[1], pairs.noisy[1])


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_a_staggered_path_follows_the_sampler_s_equation(models: Any, predicts: str) -> None:
    """Its second point by hand, from the noise that it starts with."""
    models = with_scheduler(models, predicts)
    settings = AttributionSettings(trajectories=2, sampling_steps=4, graded_steps=2)
    (found,) = pairs_of(models, [CAT], settings)
    pairs = found.select([0, 1])
    remaining = noise_schedule(models.scheduler).remaining.double()
    seed = derived_seed(3, "attribution", "path", 0)
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(pairs.noisy[:1], start)
    plain, told = (predictions(models, pairs.select([0]), prompt) for prompt in ("", CAT.prompts[0]))
    said = plain + 3.0 * (told - plain)
    first, second = (float(remaining[int(t)]) for t in pairs.timesteps)
    left, gone = first**0.5, (1 - first) ** 0.5
    noise = said if predicts == "epsilon" else left * said + gone * start
    clean = (start - gone * noise) / left
    expected = second**0.5 * clean + (1 - second) ** 0.5 * noise
    torch.testing.assert_close(pairs.noisy[1:], expected, rtol=1e-4, atol=1e-4)


def test_paths_of_velocities_are_those_of_the_sampler(models: Any) -> None:
    settings = replace(QUICK, guidance=1.0)
    velocities = with_scheduler(models, "v_prediction")
    (pairs,) = pairs_of(velocities, [CAT], settings)
    solver = ddim_like(velocities.scheduler)
    solver.set_timesteps(4)
    latents = torch.randn(
        (1, 4, 8, 8), generator=torch.Generator().manual_seed(derived_seed(3, "attribution", "path", 0))
    )
    text = encode_prompts(models.tokenizer, models.text_encoder, CAT.prompts[:1])
    for step, timestep in enumerate(solver.timesteps):
        if step in (1, 3):
            torch.testing.assert_close(pairs.noisy[(step - 1) // 2], latents[0], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            told = predict_noise(models.unet, latents, timestep, text)
        latents = solver.step(told, timestep, latents, return_dict=False)[0]


def with_scheduler(models: Any, prediction: str) -> Any:
    found = copy(models)
    scheduler = type(models.scheduler).from_config({**models.scheduler.config, "prediction_type": prediction})
    object.__setattr__(found, "scheduler", scheduler)
    return found


def predictions(models: Any, pairs: Pairs, prompt: str) -> torch.Tensor:
    text = encode_prompts(models.tokenizer, models.text_encoder, [prompt]).expand(len(pairs), -1, -1)
    with torch.no_grad():
        return predict_noise(models.unet, pairs.noisy, pairs.timesteps, text)


@pytest.mark.parametrize("base", ["", "a photo"])
def test_targets_are_what_is_predicted_for_the_base_prompt(models: Any, base: str) -> None:
    (pairs,) = pairs_of(models, [CAT], replace(QUICK, base_prompt=base))
    torch.testing.assert_close(pairs.target, predictions(models, pairs, base), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scheme",
    [
        {},
        {"staggered": False},
        {"base_prompt": "a photo"},
        {"base_prompt": "a photo", "staggered": False},
        {"pairing": "shifted", "staggered": False},
        {"pairing": "shifted", "staggered": False, "restart": True, "graded_steps": 4},
        {"objective": "denoise", "pictures": 3},
    ],
    ids=str,
)
def test_no_row_is_predicted_that_is_not_needed(models: Any, scheme: dict[str, Any]) -> None:
    settings = AttributionSettings(**{"trajectories": 3, "sampling_steps": 4, "graded_steps": 2, **scheme})
    rows = []
    counting = models.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        pairs_of(models, [CAT], settings, batch=2)
    finally:
        counting.remove()
    assert sum(rows) == sampler_rows(settings)


def test_shifted_points_are_one_step_cleaner_than_their_timestep(models: Any) -> None:
    (pairs,) = pairs_of(models, [CAT], replace(QUICK, pairing="shifted"))
    plain = walk(models, CAT.prompts[0], derived_seed(3, "attribution", "path", 0), 4, 3.0)
    assert int(pairs.timesteps[1]) == plain[3][0]
    torch.testing.assert_close(pairs.noisy[1], plain[4][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairs.target, predictions(models, pairs, ""), rtol=1e-4, atol=1e-4)


def test_the_published_scheme_has_a_path_of_its_own_for_every_step(models: Any) -> None:
    published = replace(QUICK, graded_steps=4, pairing="shifted", restart=True)
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


@pytest.mark.parametrize("staggered", [False, True])
def test_a_schedule_that_ends_in_pure_noise_is_walked_where_velocities_are_predicted(
    models: Any, staggered: bool
) -> None:
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    found = copy(models)
    scheduler = DDIMScheduler.from_config({**models.scheduler.config, **zero})
    object.__setattr__(found, "scheduler", scheduler)
    assert float(noise_schedule(scheduler).remaining.min()) == 0.0
    settings = replace(QUICK, staggered=staggered, graded_steps=4)
    (pairs,) = pairs_of(found, [CAT], settings)
    assert bool(pairs.noisy.isfinite().all())
    assert bool(pairs.target.isfinite().all())
