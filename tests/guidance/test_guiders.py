"""Guiders in modular SDXL against loops written by hand; numbers are those of section 4.2 of the study."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from torch import Tensor

from surgery.anatomy import weights_digest
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import ddim_like, load_pipeline
from surgery.delta import Delta, LowRank
from surgery.diffusion import predict_noise, read_prompts
from surgery.errors import MethodError
from surgery.guidance import concept_diffusion
from surgery.guidance.concept_diffusion import INITIAL
from surgery.guidance.guiders import ConceptDiffusionGuider, GcfgGuider, ScalingConceptGuider
from surgery.patch import Patch, Term, make_patch

STEPS = 3


@pytest.fixture(scope="module")
def xl(tiny_xl: Path) -> Any:
    models = load_pipeline(tiny_xl, dtype=torch.float64)
    models.scheduler = ddim_like(models.scheduler)
    return models


@pytest.fixture(scope="module")
def patch(tiny_xl: Path) -> Patch:
    checkpoint = open_checkpoint(tiny_xl)
    generator = torch.Generator().manual_seed(0)
    names = [
        name for name in sorted(checkpoint.shapes) if name.endswith((".attn1.to_q.weight", ".conv1.weight"))
    ]
    terms = {}
    for name in (one for one in names if one.startswith("unet/")):
        rows, *inputs = checkpoint.shapes[name]
        width = int(torch.tensor(inputs).prod())
        left, right = (torch.randn(size, generator=generator) for size in ((rows, 2), (2, width)))
        terms[name] = LowRank(0.3 * left, right / width**0.5)
    return make_patch([Term(delta=Delta(terms), source="test")], checkpoint)


def drawn(models: Any, guider: Any, latents: Tensor | None = None) -> Tensor:
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    parts = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe.update_components(
        **{part: getattr(models, part) for part in parts}, scheduler=deepcopy(models.scheduler), guider=guider
    )
    found: Tensor = pipe(
        prompt="a cat", negative_prompt="", num_inference_steps=STEPS, height=64, width=64,
        latents=start() if latents is None else latents, output_type="latent", output="images",
    )  # fmt: skip
    return found


def start() -> Tensor:
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(models: Any, step: Callable[[Tensor, Any, int], Tensor]) -> Tensor:
    scheduler = deepcopy(models.scheduler)
    scheduler.set_timesteps(STEPS)
    latents: Tensor = start() * scheduler.init_noise_sigma
    with torch.no_grad():
        for number, timestep in enumerate(scheduler.timesteps):
            latents = scheduler.step(step(latents, timestep, number), timestep, latents, return_dict=False)[0]
    return latents


def asked(models: Any, prompt: str, unet: Any = None) -> Callable[[Tensor, Any], Tensor]:
    text = read_prompts(models, [prompt])
    return lambda latents, timestep: predict_noise(
        unet or models.unet, latents, timestep, text.features, text.added(64, 64)
    )


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixed_in", [True, False])
def test_generalised_guidance_is_the_loop_by_hand(xl: Any, patch: Patch, mixed_in: bool) -> None:  # 18, 19
    before = weights_digest(xl.unet)
    guider = GcfgGuider(concept_weights=[2.0], control_weight=3.0, control_strengths=[0.5])
    found = drawn(xl, guider.attach(xl, [patch], mixed_in=mixed_in))
    units = []
    for strength in (1.0, 0.5):
        unet = deepcopy(xl.unet)
        (term,) = patch.terms
        for name, form in term.delta.terms.items():
            assert isinstance(form, LowRank)
            weight = unet.get_parameter(name.removeprefix("unet/"))
            weight.data += strength * (form.left.double() @ form.right.double()).reshape(weight.shape)
        units.append(unet)
    base, concept, control = asked(xl, ""), asked(xl, "", units[0]), asked(xl, "a cat", units[1])

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        nothing = base(latents, timestep)
        own, told = concept(latents, timestep), control(latents, timestep)
        return nothing + 2.0 * (own - nothing) + 3.0 * (told - nothing)

    expected = by_hand(xl, step)
    # whole weights are rounded to the checkpoint's half precision, as applied patches are
    rough = 1e-10 if mixed_in else 2e-2
    torch.testing.assert_close(found, expected, rtol=rough, atol=rough)
    assert weights_digest(xl.unet) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in xl.unet.modules())


def test_a_pass_that_fails_leaves_no_patch_behind(xl: Any, patch: Patch) -> None:  # 19
    guider = GcfgGuider(concept_weights=[2.0]).attach(xl, [patch])

    def fail(*_: Any) -> None:
        if guider._count_prepared == 3:
            raise RuntimeError("stopped in the concept's branch")

    handle = xl.unet.conv_out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        drawn(xl, guider)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in xl.unet.modules())
    near(drawn(xl, ClassifierFreeGuidance(5.0)), drawn(xl, ClassifierFreeGuidance(5.0)))


def test_without_patches_attached_it_says_so(xl: Any, patch: Patch) -> None:
    with pytest.raises(MethodError, match=r"attach\(pipeline, patches\)"):
        drawn(xl, GcfgGuider())
    with pytest.raises(MethodError, match="1 patches for 2 weights"):
        GcfgGuider(concept_weights=[1.0, 2.0]).attach(xl, [patch])
    with pytest.raises(MethodError, match="as many of each"):
        GcfgGuider(concept_weights=[1.0, 2.0], strengths=[1.0])


def test_concept_diffusion_without_subjects_is_classifier_free_guidance(xl: Any) -> None:  # 10
    near(drawn(xl, ConceptDiffusionGuider()), drawn(xl, ClassifierFreeGuidance(7.5)))


def test_concept_diffusion_is_the_loop_by_hand(xl: Any) -> None:
    reading = read_prompts(xl, ["a fish"])
    pooled = reading.pooled
    assert pooled is not None
    guider = ConceptDiffusionGuider(threshold=2.0).attach(
        [{"prompt_embeds": reading.features, "text_embeds": pooled}]
    )
    base, prompt, subject = asked(xl, ""), asked(xl, "a cat"), asked(xl, "a fish")
    settings = ConceptDiffusionGuider(threshold=2.0).settings
    assert settings.over_threshold == INITIAL.over_threshold

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        told = [one(latents, timestep) for one in (base, prompt, subject)]
        return concept_diffusion.combined(told[0], told[1], told[2:], settings, number)

    near(drawn(xl, guider), by_hand(xl, step))


def test_inputs_that_the_pipeline_does_not_have_are_named(xl: Any) -> None:
    with pytest.raises(MethodError, match="no input 'pooled'.*prompt_embeds, text_embeds"):
        drawn(xl, ConceptDiffusionGuider().attach([{"pooled": start()}]))


def test_scaling_a_concept_reads_the_prompt_halfway_to_the_path(xl: Any) -> None:
    path = [start() + 0.1 * number for number in range(STEPS + 1)]
    guider = ScalingConceptGuider(scale=2.0, decay=1.0, exit_step=2).attach(path)
    base, prompt = asked(xl, ""), asked(xl, "a cat")

    def step(latents: Tensor, timestep: Any, number: int) -> Tensor:
        seen = (latents + path[number]) / 2 if number < 2 else latents
        nothing = base(latents, timestep)
        return nothing + 2.0 * (1 - number / 2) * (prompt(seen, timestep) - nothing)

    near(drawn(xl, guider), by_hand(xl, step))
    with pytest.raises(MethodError, match="a path of 0 latents"):
        drawn(xl, ScalingConceptGuider())


@pytest.mark.parametrize("kind", [GcfgGuider, ConceptDiffusionGuider, ScalingConceptGuider])
def test_settings_survive_saving(kind: Any, tmp_path: Path) -> None:
    changes: dict[Any, dict[str, Any]] = {
        GcfgGuider: {"concept_weights": [1.5, 2.0], "base_strengths": [0.5, 0.0], "across": True},
        ConceptDiffusionGuider: {"signed": True, "parts": "span", "softness": 0.1},
        ScalingConceptGuider: {"anchored": True, "decay": 1.0},
    }
    made = kind(**changes[kind])
    made.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).settings == made.settings


def test_the_number_of_branches_does_not_change_with_the_step(xl: Any, patch: Patch) -> None:
    guider = GcfgGuider(concept_weights=[2.0]).attach(xl, [patch])
    assert guider.num_conditions == 3
    drawn(xl, guider)
    assert guider.num_conditions == 3
    near(drawn(xl, guider), drawn(xl, guider))


def test_outside_of_its_steps_a_guider_leaves_the_prompt_alone(xl: Any) -> None:
    path = [start()] * (STEPS + 1)
    prompt = asked(xl, "a cat")
    plain = by_hand(xl, lambda latents, timestep, _: prompt(latents, timestep))
    for guider in (
        ConceptDiffusionGuider(stop=0.1),
        ScalingConceptGuider(exit_step=0, stop=0.1).attach(path),
    ):
        near(drawn(xl, guider), plain)
    half = drawn(xl, ConceptDiffusionGuider(start=0.5))
    assert not torch.allclose(half, plain)
    assert not torch.allclose(half, drawn(xl, ConceptDiffusionGuider()))


def test_a_patch_of_words_is_refused_by_the_guider(xl: Any, tiny_xl: Path) -> None:
    checkpoint = open_checkpoint(tiny_xl)
    name = next(
        one for one in sorted(checkpoint.shapes) if one.startswith("text_encoder/") and "fc2.weight" in one
    )
    rows, width = checkpoint.shapes[name]
    delta = Delta({name: LowRank(torch.ones(rows, 1), torch.ones(1, width))})
    words = make_patch([Term(delta=delta, source="test")], checkpoint)
    with pytest.raises(MethodError, match="sees prompts after they are read"):
        GcfgGuider(concept_weights=[1.0]).attach(xl, [words])
