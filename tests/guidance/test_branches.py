"""Branches of one pass against a U-Net of their own each; numbers are those of section 4.2 of the study."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy import weights_digest
from surgery.delta import LowRank
from surgery.diffusion import predict_noise, read_prompts
from surgery.errors import MethodError
from surgery.guidance.branches import Branch, BranchExecutor
from surgery.guidance.weights import MixedWeights, Strengths, patched, swapped_weights
from surgery.patch import Patch
from tests.guidance.conftest import LAYERS

STRENGTHS: list[Strengths] = [(0.0, 0.0), (1.0, 0.0), (0.0, -0.7), (0.4, 2.0)]
PROMPTS = ["", "a cat", "a dog", ""]


@pytest.fixture
def latents() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64)


def branches_of(models: Any) -> list[Branch]:
    readings = [read_prompts(models, [prompt]).repeated(2) for prompt in PROMPTS]
    return [Branch(text=text, strengths=own) for text, own in zip(readings, STRENGTHS, strict=True)]


def unet_of(models: Any, patches: list[Patch], strengths: Strengths) -> Any:
    """A second U-Net with the factors multiplied out, in float64."""
    unet = deepcopy(models.unet)
    for patch, strength in zip(patches, strengths, strict=True):
        (term,) = patch.terms
        for name, form in term.delta.terms.items():
            assert isinstance(form, LowRank)
            weight = unet.get_parameter(name.removeprefix("unet/"))
            change = (form.left.double() @ form.right.double()).reshape(weight.shape)
            weight.data += strength * term.strength * change
    return unet


@pytest.mark.parametrize("together", [True, False])
def test_mixed_branches_are_those_of_a_unet_each(  # 18
    exact: Any, patches: list[Patch], latents: Tensor, together: bool
) -> None:
    executor = BranchExecutor(models=exact, weights=MixedWeights(exact, patches), together=together)
    branches = branches_of(exact)
    found = executor.predict(latents, 500, branches)
    for branch, prediction in zip(branches, found, strict=True):
        with torch.no_grad():
            own = unet_of(exact, patches, branch.strengths)
            expected = predict_noise(own, latents, 500, branch.text.features)
        torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-10)
    base, *others = found
    assert all(float((base - other).abs().max()) > 1e-3 for other in others)


def test_swapped_branches_are_those_of_applied_patches(
    exact: Any, patches: list[Patch], latents: Tensor
) -> None:
    weights = swapped_weights(exact, patches, STRENGTHS)
    branches = branches_of(exact)
    found = BranchExecutor(models=exact, weights=weights).predict(latents, 500, branches)
    for branch, prediction in zip(branches, found, strict=True):
        with torch.no_grad(), patched(exact, patches, branch.strengths):
            expected = predict_noise(exact.unet, latents, 500, branch.text.features)
        torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-10)


def test_a_branch_may_read_other_latents_and_timesteps_of_each_picture(exact: Any, latents: Tensor) -> None:
    text = read_prompts(exact, ["a cat"]).repeated(2)
    other, timesteps = latents.flip(0), torch.tensor([3, 900])
    found = BranchExecutor(models=exact).predict(
        latents, timesteps, [Branch(text=text), Branch(text=text, instead=other)]
    )
    with torch.no_grad():
        for prediction, noisy in zip(found, (latents, other), strict=True):
            expected = predict_noise(exact.unet, noisy, timesteps, text.features)
            torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["mixed", "swapped"])
def test_the_unet_is_as_it_was_also_after_an_error(  # 19
    exact: Any, patches: list[Patch], latents: Tensor, kind: str
) -> None:
    before = weights_digest(exact.unet)
    weights: Any = (
        MixedWeights(exact, patches) if kind == "mixed" else swapped_weights(exact, patches, STRENGTHS)
    )
    executor = BranchExecutor(models=exact, weights=weights)
    executor.predict(latents, 500, branches_of(exact))
    with pytest.raises(RuntimeError):
        executor.predict(latents[:, :2], 500, branches_of(exact))
    assert weights_digest(exact.unet) == before
    layers = [exact.unet.get_submodule(name.removeprefix("unet/").removesuffix(".weight")) for name in LAYERS]
    assert not any(layer._forward_hooks for layer in layers)


def test_what_is_not_low_rank_is_swapped_and_not_mixed(exact: Any, tiny_pipeline: Any) -> None:
    from surgery.checkpoint import open_checkpoint
    from surgery.delta import Delta, Dense
    from surgery.patch import Term, make_patch

    checkpoint = open_checkpoint(tiny_pipeline)
    whole = Delta({LAYERS[0]: Dense(torch.full(checkpoint.shapes[LAYERS[0]], 0.01))})
    patch = make_patch([Term(delta=whole, source="test")], checkpoint)
    with pytest.raises(MethodError, match=r"1 changes are no factors.*by Dense.*'swapped'"):
        MixedWeights(exact, [patch])
    held = swapped_weights(exact, [patch], [(1.0,), (0.0,)])
    assert held.values.keys() == {(1.0,)}  # the base is there already
    weight = exact.unet.get_parameter(LAYERS[0].removeprefix("unet/"))
    with held.at([(0.0,)]):
        assert exact.unet.get_parameter(LAYERS[0].removeprefix("unet/")) is weight
