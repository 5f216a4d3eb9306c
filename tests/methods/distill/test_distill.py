"""A scale of guidance as weights: the closed form, the loss, and training that lets go of the models."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy import weights_digest, weights_of
from surgery.delta import Dense, LowRank, Operator
from surgery.delta.algebra import change_of
from surgery.diffusion import predict_under, read_prompts
from surgery.errors import MethodError
from surgery.guidance.gcfg import GcfgSettings, combined
from surgery.methods.distill import DistillConcept, DistillSettings, check_distill, distill
from surgery.methods.distill.closed_form import closed_form, scaled_reading
from surgery.methods.distill.door import _texts
from surgery.methods.distill.objective import DistillObjective
from surgery.methods.distill.points import scaled_target
from surgery.methods.training import State
from surgery.methods.training import loop as room
from surgery.store import Store

CAT = DistillConcept(name="cat", prompts=("cat", "a photo of cat"), scale=0.0, seed=3)
QUICK = DistillSettings(
    steps=4, learning_rate=1e-3, batch=4, sampling_steps=4, graded_steps=2, paths=4, refresh=2, ridge=1e-6
)
NAMES = (
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "unet/mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
)


def tokens(count: int, seed: int) -> Tensor:
    return torch.randn((count, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mapped(operator: Operator, given: Tensor) -> Tensor:
    """What a projection reads instead of some tokens: (I + L R) c."""
    return given + (operator.left @ (operator.right @ given.T)).T


def test_a_scale_of_one_changes_nothing() -> None:
    found = scaled_reading(tokens(4, 1), tokens(4, 2), torch.ones(4), tokens(3, 3), 1.0, 1e-3)
    assert torch.equal(found.left @ found.right, torch.zeros(8, 8, dtype=torch.float64))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 3.0])
def test_without_a_ridge_tokens_are_read_as_scaled_and_others_as_they_were(scale: float) -> None:
    """Seven directions of eight: the equations have an exact answer."""
    concept, null, kept = tokens(4, 1), tokens(4, 2), tokens(3, 3)
    found = scaled_reading(concept, null, torch.full((4,), scale), kept, 1.0, 0.0)
    torch.testing.assert_close(mapped(found, concept), null + scale * (concept - null), rtol=0, atol=1e-9)
    torch.testing.assert_close(mapped(found, kept), kept, rtol=0, atol=1e-9)


def test_what_is_kept_more_strongly_leaves_more_of_the_concept() -> None:
    concept, null, kept = tokens(4, 1), tokens(4, 2), tokens(12, 3)
    left = []
    for weight in (1e-6, 1e-2, 1.0):
        found = scaled_reading(concept, null, torch.zeros(4), kept, weight, 0.0)
        left.append(float((mapped(found, concept) - null).norm() / (concept - null).norm()))
    assert left[0] < 1e-3 < left[1] < left[2]


def test_the_map_holds_the_empty_prompt_and_reads_the_concept_as_empty(models: Any) -> None:
    found = closed_form(models, [CAT], ["dog"], replace(QUICK, preserve_weight=10.0))
    empty, cat, dog = (read_prompts(models, [text]).features[0].double() for text in ("", "cat", "dog"))
    moved = [float((mapped(found, one) - one).norm()) for one in (cat, empty, dog)]
    assert max(moved[1:]) < 0.5 * moved[0]  # a random encoder tells texts apart badly


def test_the_target_of_a_negative_scale_is_generalised_guidance() -> None:
    base, concept = (tokens(2, seed).view(2, 2, 2, 2) for seed in (1, 2))
    target = scaled_target(base, concept, torch.full((2,), -1.0), torch.ones(2), 0.0)
    same = combined(base, [], concept, GcfgSettings(concepts=(), control_weight=-1.0))
    torch.testing.assert_close(target, same, rtol=0, atol=1e-12)


def test_a_decay_lets_the_scale_fall_towards_one() -> None:
    base, concept = (tokens(2, seed).view(2, 2, 2, 2) for seed in (1, 2))
    early, late = scaled_target(base, concept, torch.zeros(2), torch.tensor([1.0, 0.0]), 2.0)
    torch.testing.assert_close(early, base[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(late, concept[1], rtol=0, atol=1e-12)


def test_at_a_scale_of_one_neither_loss_nor_gradient_is_left(models: Any) -> None:
    as_it_is = [replace(CAT, scale=1.0)]
    texts = _texts(models, as_it_is, ["dog"], QUICK)
    leaf = weights_of(models, NAMES[:1])[NAMES[0]]
    asked = leaf.requires_grad
    leaf.requires_grad_(True)
    try:
        objective = DistillObjective(models, as_it_is, texts, QUICK, nullcontext)
        (loss,) = objective.losses(0, State())
        (slope,) = torch.autograd.grad(loss, [leaf])
    finally:
        leaf.requires_grad_(asked)
    assert float(loss.detach()) < 1e-12
    assert float(slope.abs().max()) < 1e-6


def test_the_closed_form_alone_is_one_map_for_all_projections(models: Any) -> None:
    found = distill(models, [CAT], NAMES, replace(QUICK, steps=0), preserve=["dog"])
    forms = list(found.delta.terms.values())
    assert all(isinstance(form, Operator) for form in forms)
    assert all(form is forms[0] for form in forms)
    assert found.losses == ()
    assert found.rank >= 1


@pytest.mark.parametrize(
    ("form", "start"), [("weights", "none"), ("factors", "none"), ("weights", "closed_form")]
)
def test_the_loss_falls_and_the_models_are_as_they_were(models: Any, form: Any, start: Any) -> None:
    before = weights_digest(models.unet)
    settings = replace(
        QUICK, steps=24, refresh=24, batch=8, form=form, start=start, rank=2, learning_rate=1e-2
    )
    found = distill(models, [CAT], NAMES, settings, preserve=["dog"])
    assert found.losses[-1] < (1.0 if start == "closed_form" else 0.8) * found.losses[0]
    assert weights_digest(models.unet) == before
    assert not hasattr(models.unet, "peft_config")
    kinds = {type(one) for one in found.delta.terms.values()}
    assert kinds == {LowRank if form == "factors" else Dense}
    assert set(found.delta.terms) == set(NAMES)


def test_the_first_loss_is_the_distance_from_the_scaled_prediction(models: Any) -> None:
    settings = replace(QUICK, start="none")
    texts = _texts(models, [CAT], ["dog"], settings)
    state = State()
    objective = DistillObjective(models, [CAT], texts, settings, nullcontext)
    with torch.no_grad():
        (loss,) = objective.losses(0, state)
    points = state.carried
    null, words = read_prompts(models, [""]), read_prompts(models, list(CAT.prompts))
    with torch.no_grad():
        rows = points["prompt"]
        base = predict_under(models, points["noisy"], points["timesteps"], null.repeated(len(rows)))
        concept = predict_under(models, points["noisy"], points["timesteps"], words.select(rows))
    torch.testing.assert_close(points["target"], base, rtol=1e-4, atol=1e-5)  # ω = 0
    gaps = (concept - base).square().flatten(1).mean(1)
    assert float(gaps.min()) * 0.9 <= float(loss) <= float(gaps.max()) * 1.1


def test_a_stopped_run_goes_on_between_two_draws_and_ends_in_the_same_bits(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, refresh=3)
    whole = distill(models, [CAT], NAMES, settings, preserve=["dog"])
    monkeypatch.setattr(room, "EVERY_S", 0.0)
    own = DistillObjective.losses

    def stop(self: Any, step: int, state: State) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return own(self, step, state)

    store = Store(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(DistillObjective, "losses", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(models, [CAT], NAMES, settings, preserve=["dog"], store=store)
    resumed = distill(models, [CAT], NAMES, settings, preserve=["dog"], store=store)
    assert resumed.losses == whole.losses
    for name in NAMES:
        assert torch.equal(resumed.delta.materialise(name), whole.delta.materialise(name))


def test_training_starts_from_the_closed_form(models: Any) -> None:
    settings = replace(QUICK, steps=1, learning_rate=1e-12)
    found = distill(models, [CAT], NAMES, settings, preserve=["dog"])
    start = closed_form(models, [CAT], ["dog"], settings)
    for name, weight in weights_of(models, NAMES).items():
        expected = change_of(start, weight.detach())
        torch.testing.assert_close(found.delta.materialise(name), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "some"}, "form is 'some'"),
        ({"graded_steps": 9}, "graded_steps is 9, and a path has 4"),
        ({"steps": 0, "start": "none"}, "neither a closed form nor a step"),
        ({"form": "factors"}, "factors start from nothing"),
        ({"ridge": -1.0}, r"ridge is -1\.0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"limit": -1.0}, r"limit is -1\.0"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_distill([CAT], replace(QUICK, **changes))


def test_concepts_that_cannot_be_changed_are_refused(models: Any) -> None:
    for concepts, preserve, message in (
        ([], (), "there is no concept"),
        ([replace(CAT, scale=1.0)], (), "changes nothing"),
        ([CAT, replace(CAT, name="Cat")], (), "named 2 times"),
        ([CAT], ("Cat",), "changed and preserved"),
        ([replace(CAT, scale=3.0)], (), "predictions saturate; expected at most 2"),
    ):
        with pytest.raises(MethodError, match=message):
            check_distill(concepts, QUICK, preserve)
    with pytest.raises(MethodError, match="none is among the weights"):
        distill(models, [CAT], ["unet/conv_in.weight"], replace(QUICK, steps=0))
    with pytest.raises(MethodError, match="does not reach 'unet/conv_in.weight'"):
        distill(models, [CAT], [NAMES[0], "unet/conv_in.weight"], replace(QUICK, steps=0))
