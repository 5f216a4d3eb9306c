from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from surgery.diffusion import decode, sample, sample_latents
from surgery.errors import SurgeryError

PROMPTS = ["a photo of a cat", "a dog", "a photo of a cat"]
SEEDS = [3, 4, 5]
STEPS = 3


def stock_pictures(pipeline: Any, **options: Any) -> np.ndarray[Any, Any]:
    """The oracle: diffusers' own pipeline, with one generator for each picture."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    shares = pipeline(
        PROMPTS, num_inference_steps=STEPS, generator=generators, output_type="np", **options
    ).images
    return np.asarray((shares * 255).round())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DDIMScheduler, {}),
        (PNDMScheduler, {"skip_prk_steps": True}),
        (EulerDiscreteScheduler, {}),
        (DPMSolverMultistepScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_pictures_are_those_of_the_stock_pipeline(pipeline: Any, kind: Any, settings: dict[str, Any]) -> None:
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    ours = sample(pipeline, PROMPTS, SEEDS, steps=STEPS, guidance=5.0, batch=2)
    assert np.abs(ours - stock_pictures(pipeline, guidance_scale=5.0)).max() <= 1


def test_guidance_of_one_is_the_stock_pipelines_plain_prediction(pipeline: Any) -> None:
    ours = sample(pipeline, PROMPTS, SEEDS, steps=STEPS, guidance=1.0)
    assert np.abs(ours - stock_pictures(pipeline, guidance_scale=1.0)).max() <= 1


def test_a_negative_prompt_acts_as_in_the_stock_pipeline(pipeline: Any) -> None:
    ours = sample(pipeline, PROMPTS, SEEDS, steps=STEPS, guidance=7.0, negative="a dog")
    theirs = stock_pictures(pipeline, guidance_scale=7.0, negative_prompt=["a dog"] * 3)
    assert np.abs(ours - theirs).max() <= 1
    plain = sample(pipeline, PROMPTS, SEEDS, steps=STEPS, guidance=7.0)
    assert (ours != plain).any()


def test_another_size_is_the_stock_pipelines_picture_of_that_size(pipeline: Any) -> None:
    ours = sample(pipeline, PROMPTS, SEEDS, steps=STEPS, size=(32, 64))
    assert ours.shape == (3, 32, 64, 3)
    theirs = stock_pictures(pipeline, guidance_scale=5.0, height=32, width=64)
    assert np.abs(ours - theirs).max() <= 1


def test_a_picture_does_not_depend_on_its_batch(pipeline: Any) -> None:
    together = sample_latents(pipeline, PROMPTS, SEEDS, steps=STEPS, batch=3)
    alone = sample_latents(pipeline, PROMPTS[1:2], SEEDS[1:2], steps=STEPS)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_a_stochastic_solver_does_not_make_pictures_depend_on_their_batch(pipeline: Any) -> None:
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    together = sample_latents(pipeline, PROMPTS, SEEDS, steps=STEPS, batch=3)
    alone = sample_latents(pipeline, PROMPTS[2:], SEEDS[2:], steps=STEPS)
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)


def test_the_same_call_gives_the_same_bits_whatever_was_drawn_before(pipeline: Any) -> None:
    first = sample_latents(pipeline, PROMPTS, SEEDS, steps=STEPS)
    sample_latents(pipeline, ["a dog"], [9], steps=STEPS + 1)
    torch.manual_seed(1)
    assert torch.equal(first, sample_latents(pipeline, PROMPTS, SEEDS, steps=STEPS))


def test_the_callers_scheduler_and_random_state_are_left_alone(pipeline: Any) -> None:
    pipeline.scheduler.set_timesteps(7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sample_latents(pipeline, PROMPTS, SEEDS, steps=STEPS)
    assert len(pipeline.scheduler.timesteps) == 7
    assert torch.equal(before, torch.get_rng_state())


def test_sampling_decodes_the_latents_it_gives(pipeline: Any) -> None:
    latents = sample_latents(pipeline, PROMPTS, SEEDS, steps=STEPS)
    assert latents.shape == (3, 4, 8, 8)
    pictures = sample(pipeline, PROMPTS, SEEDS, steps=STEPS)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, decode(pipeline.vae, latents))


def test_latents_can_be_used_where_gradients_flow(pipeline: Any) -> None:
    latents = sample_latents(pipeline, PROMPTS[:1], SEEDS[:1], steps=1)
    scale = torch.ones((), requires_grad=True)
    (slope,) = torch.autograd.grad((latents * scale).sum(), scale)
    torch.testing.assert_close(slope, latents.sum())


def test_faults_of_a_call_are_told_together(pipeline: Any) -> None:
    with pytest.raises(SurgeryError) as caught:
        sample(pipeline, PROMPTS, [1], steps=0, guidance=float("nan"), size=(30, 32))
    message = str(caught.value)
    assert "4 faults" in message
    assert "guidance is nan" in message
    assert "3 prompts and 1 seeds" in message
    assert "steps is 0" in message
    assert "multiples of 4" in message


def test_more_steps_than_the_schedule_has_are_refused(pipeline: Any) -> None:
    with pytest.raises(SurgeryError, match="steps is 1001; expected 1 to 1000"):
        sample(pipeline, PROMPTS[:1], [1], steps=1001)


def test_latents_that_are_no_numbers_make_no_picture(pipeline: Any) -> None:
    with pytest.raises(SurgeryError, match="became NaN or infinite"):
        sample(pipeline, PROMPTS[:1], [1], steps=2, guidance=1e308)
