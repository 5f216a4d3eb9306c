"""Guides in the sampler against loops written by hand; numbers are those of section 4.2 of the study."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import Control, predict_noise, read_prompts, sample_latents
from surgery.errors import MethodError
from surgery.guidance import concept_diffusion
from surgery.guidance.concept_diffusion import INITIAL, LATER, OURS, ConceptSettings
from surgery.guidance.gcfg import GcfgSettings, GuidedConcept
from surgery.guidance.guides import ConceptGuide, GcfgGuide, Mode
from surgery.patch import Patch
from tests.guidance.test_branches import unet_of

PROMPTS, SEEDS, STEPS = ["a cat", "a dog"], [5, 6], 3
TWO = GcfgSettings(
    concepts=(GuidedConcept(weight=2.0), GuidedConcept(weight=0.5, strength=0.7, control_strength=0.3)),
    control_weight=3.0,
)


def by_hand(models: Any, step: Callable[[Tensor, Any, int], Tensor]) -> Tensor:
    """The sampler as a plain loop over one batch."""
    scheduler = deepcopy(models.scheduler)
    scheduler.set_timesteps(STEPS)
    noise = [
        torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in SEEDS
    ]
    latents: Tensor = torch.cat(noise) * scheduler.init_noise_sigma
    with torch.no_grad():
        for number, timestep in enumerate(scheduler.timesteps):
            latents = scheduler.step(step(latents, timestep, number), timestep, latents, return_dict=False)[0]
    return latents


def sampled(models: Any, guide: Any) -> Tensor:
    return sample_latents(models, PROMPTS, SEEDS, steps=STEPS, guide=guide, progress=False)


def features(models: Any, prompts: list[str]) -> Tensor:
    return read_prompts(models, prompts).features


@pytest.mark.parametrize("together", [True, False])
def test_generalised_guidance_is_a_loop_over_several_unets(
    exact: Any, patches: list[Patch], together: bool
) -> None:
    units = {own: unet_of(exact, patches, own) for own in ((0.0, 0.0), (1.0, 0.0), (0.0, 0.7), (0.0, 0.3))}
    empty, text = features(exact, ["", ""]), features(exact, PROMPTS)

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        def predict(strengths: tuple[float, float], given: Tensor) -> Tensor:
            return predict_noise(units[strengths], latents, timestep, given)

        base = predict((0.0, 0.0), empty)
        first, second = predict((1.0, 0.0), empty), predict((0.0, 0.7), empty)
        control = predict((0.0, 0.3), text)
        return base + 2.0 * (first - base) + 0.5 * (second - base) + 3.0 * (control - base)

    found = sampled(exact, GcfgGuide(exact, patches, TWO, together=together))
    torch.testing.assert_close(found, by_hand(exact, step), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["mixed", "swapped"])
def test_patches_at_nothing_are_guidance_by_the_prompt_alone(  # 4
    exact: Any, patches: list[Patch], mode: Mode
) -> None:
    nothing = GuidedConcept(weight=9.0, strength=0.0)
    guide = GcfgGuide(exact, patches[:1], GcfgSettings(concepts=(nothing,), control_weight=3.0), mode=mode)
    plain = sample_latents(exact, PROMPTS, SEEDS, steps=STEPS, guidance=3.0, progress=False)
    torch.testing.assert_close(sampled(exact, guide), plain, rtol=0, atol=1e-10)


def test_all_strengths_at_one_are_ordinary_guidance_with_the_tuned_model(
    exact: Any, patches: list[Patch]
) -> None:
    tuned = GuidedConcept(weight=9.0, strength=1.0, base_strength=1.0, control_strength=1.0)
    guide = GcfgGuide(exact, patches[:1], GcfgSettings(concepts=(tuned,), control_weight=3.0))
    own, empty, text = (
        unet_of(exact, patches[:1], (1.0,)),
        features(exact, ["", ""]),
        features(exact, PROMPTS),
    )

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        base, told = (predict_noise(own, latents, timestep, given) for given in (empty, text))
        return base + 3.0 * (told - base)

    torch.testing.assert_close(sampled(exact, guide), by_hand(exact, step), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "branches"),
    [
        (TWO, 4),
        # without weight, or as strong as in the base, a branch is the base's own
        (replace(TWO, concepts=(replace(TWO.concepts[0], weight=0.0), TWO.concepts[1])), 3),
        (replace(TWO, concepts=(TWO.concepts[0], replace(TWO.concepts[1], strength=0.0))), 3),
        # but what control is held across is needed without a weight, too
        (replace(TWO, across=True, concepts=(replace(TWO.concepts[0], weight=0.0), TWO.concepts[1])), 4),
    ],
)
def test_branches_that_are_alike_are_computed_once(
    exact: Any, patches: list[Patch], settings: GcfgSettings, branches: int
) -> None:
    rows: list[int] = []
    hook = exact.unet.conv_in.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        sampled(exact, GcfgGuide(exact, patches, settings))
    finally:
        hook.remove()
    assert sum(rows) == STEPS * len(PROMPTS) * branches


def test_without_control_no_prompt_is_read(exact: Any, patches: list[Patch]) -> None:
    guide = GcfgGuide(exact, patches[:1], GcfgSettings(control_weight=0.0))
    first = sampled(exact, guide)
    other = sample_latents(exact, ["a fish", ""], SEEDS, steps=STEPS, guide=guide, progress=False)
    assert torch.equal(first, other)


def test_control_across_the_concept_and_limits_change_what_they_say(exact: Any, patches: list[Patch]) -> None:
    plain = sampled(exact, GcfgGuide(exact, patches[:1], GcfgSettings()))
    for settings in (GcfgSettings(across=True), GcfgSettings(limit=1e-3)):
        assert not torch.allclose(sampled(exact, GcfgGuide(exact, patches[:1], settings)), plain)
    # what may pull by nothing leaves the base alone
    empty = features(exact, ["", ""])
    still = by_hand(exact, lambda latents, when, _: predict_noise(exact.unet, latents, when, empty))
    found = sampled(exact, GcfgGuide(exact, patches[:1], GcfgSettings(limit=0.0)))
    torch.testing.assert_close(found, still, rtol=0, atol=1e-10)


def test_as_many_patches_as_concepts_are_expected(exact: Any, patches: list[Patch]) -> None:
    with pytest.raises(MethodError, match="2 patches and settings of 1 concepts"):
        GcfgGuide(exact, patches, GcfgSettings())


SUBJECTS = {"a cat": ["cat", "a fish"], "a dog": []}


@pytest.mark.parametrize("settings", [INITIAL, OURS, LATER])
def test_without_subjects_concept_diffusion_is_plain_guidance(exact: Any, settings: Any) -> None:  # 10
    guide = ConceptGuide(models=exact, subjects={"a cat": [], "a dog": []}, settings=settings)
    plain = sample_latents(exact, PROMPTS, SEEDS, steps=STEPS, guidance=7.5, progress=False)
    torch.testing.assert_close(sampled(exact, guide), plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("together", [True, False])
def test_pictures_with_other_numbers_of_subjects_are_drawn_as_alone(exact: Any, together: bool) -> None:
    settings = replace(INITIAL, threshold=2.0)  # all subjects are added
    guide = ConceptGuide(models=exact, subjects=SUBJECTS, settings=settings, together=together)
    texts = [features(exact, [prompt]) for prompt in ("", "a cat", "cat", "a fish")]
    other = [features(exact, [prompt]) for prompt in ("", "a dog")]

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        base, prompt, *subjects = (predict_noise(exact.unet, latents[:1], timestep, one) for one in texts)
        first = concept_diffusion.combined(base, prompt, subjects, settings, number)
        base, prompt = (predict_noise(exact.unet, latents[1:], timestep, one) for one in other)
        return torch.cat([first, base + 7.5 * (prompt - base)])

    torch.testing.assert_close(sampled(exact, guide), by_hand(exact, step), rtol=0, atol=1e-10)


def test_steps_are_counted_anew_for_each_batch(exact: Any) -> None:
    settings = ConceptSettings(threshold=2.0, first_step=1, last_step=2)
    guide = ConceptGuide(models=exact, subjects={"a cat": ["a fish"], "a dog": ["cat"]}, settings=settings)
    together = sampled(exact, guide)
    apart = sample_latents(exact, PROMPTS, SEEDS, steps=STEPS, guide=guide, batch=1, progress=False)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-10)


def test_a_prompt_without_subjects_given_is_refused(exact: Any) -> None:
    with pytest.raises(MethodError, match="no subjects are given for the prompt 'a dog'"):
        sampled(exact, ConceptGuide(models=exact, subjects={"a cat": []}))


def test_an_empty_control_prompt_is_read_alike_in_every_batch(tiny_xl: Any) -> None:
    """Of SDXL, branches without words read zeros, and an empty prompt is a prompt."""
    models = load_pipeline(tiny_xl, dtype=torch.float32)
    guide = GcfgGuide(models, [], GcfgSettings(concepts=(), control_weight=3.0))
    prompts, seeds = ["", "", "a cat"], [1, 2, 3]
    together, apart = (
        sample_latents(models, prompts, seeds, steps=2, batch=batch, guide=guide, progress=False)
        for batch in (3, 1)
    )
    torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-3)


def controlnet_of(unet: Any) -> Any:
    """A ControlNet of the U-Net's shape whose outputs are not the nothing they start as."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(unet, conditioning_channels=3).double().eval()
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    return net.requires_grad_(False)


@pytest.mark.parametrize("together", [True, False])
def test_a_controlnet_is_beside_the_base_in_the_prompt_s_branch_alone(
    exact: Any, patches: list[Patch], together: bool
) -> None:
    net = controlnet_of(exact.unet)
    picture = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = GcfgSettings(concepts=(GuidedConcept(weight=2.0),), control_weight=3.0)
    tuned = unet_of(exact, patches[:1], (1.0,))
    empty, text = features(exact, ["", ""]), features(exact, PROMPTS)

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        base, concept = (predict_noise(one, latents, timestep, empty) for one in (exact.unet, tuned))
        down, mid = net(latents, timestep, text, picture.expand(2, -1, -1, -1), 0.7, return_dict=False)
        control = exact.unet(
            latents,
            timestep,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        whole: Tensor = base + 2.0 * (concept - base) + 3.0 * (control - base)
        return whole

    control = Control(net=net, picture=picture, scale=0.7)
    guide = GcfgGuide(exact, patches[:1], settings, together=together, control=control)
    found = sampled(exact, guide)
    torch.testing.assert_close(found, by_hand(exact, step), rtol=0, atol=1e-10)
    plain = sampled(exact, GcfgGuide(exact, patches[:1], settings, together=together))
    assert float((found - plain).abs().max()) > 1e-3


def test_a_controlnet_without_the_branch_it_is_beside_is_refused(exact: Any, patches: list[Patch]) -> None:
    control = Control(net=torch.nn.Identity(), picture=torch.zeros((1, 3, 8, 8)))
    with pytest.raises(MethodError, match="control_weight is 0"):
        GcfgGuide(exact, patches[:1], GcfgSettings(control_weight=0.0), control=control)
