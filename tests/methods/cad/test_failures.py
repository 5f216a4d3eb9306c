"""Every row of the study's table of failures (8.5): each is refused by name, or noticed by name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from surgery.anatomy.components import components_of
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.delta import Delta, Places, Rescale
from surgery.errors import MethodError, PatchError
from surgery.methods.cad.checks import (
    Facts,
    attribution_findings,
    effect_findings,
    grown_findings,
    unknown_findings,
)
from surgery.methods.cad.control import Control
from surgery.methods.cad.door import edit
from surgery.methods.cad.fit import usual_rows
from surgery.methods.cad.gradients import Grading, Sums, add_gradients, measure
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import CadConcept, Measured, Pairs, concepts_named
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.settings import AttributionSettings, CadSettings, SelectionSettings
from surgery.methods.cad.trial import Trial
from surgery.patch import Term, apply_patch, load_patch, make_patch, save_patch
from surgery.record import Finding
from surgery.shelf import checkpoint_path
from tests.methods.cad.conftest import CAT, NAMES, QUICK
from tests.support.tiny import build_tiny

SETTINGS = CadSettings(attribution=QUICK, selection=SelectionSettings(ratio=0.05), controls=False)
GOOD = Facts(
    measure=2.0,
    deviation=0.1,
    pairs=4,
    by_timestep={100: 1.0, 300: 1.1, 600: 0.9, 900: 1.0},
    positive=0.5,
    zeros=0.0,
    empty=(),
    masked_already={},
    by_tensor={},
)


def with_unet(models: Any) -> Any:
    """The same models with a U-Net that may be changed."""
    found = copy(models)
    object.__setattr__(found, "unet", deepcopy(models.unet))
    return found


def with_scheduler(models: Any, scheduler: Any) -> Any:
    found = copy(models)
    object.__setattr__(found, "scheduler", scheduler)
    return found


def edited(models: Any, settings: CadSettings = SETTINGS, concept: CadConcept = CAT) -> Any:
    return edit(models, [concept], NAMES, settings)


def kinds(findings: Any) -> set[str]:
    return {finding.kind for finding in findings}


def parameter(models: Any, name: str) -> Tensor:
    found: Tensor = models.unet.get_parameter(name.removeprefix("unet/"))
    return found


# what would make scores meaningless is refused


def test_numbers_that_are_none(models: Any) -> None:
    broken = with_unet(models)
    parameter(broken, NAMES[0]).data[0, 0] = torch.nan
    with pytest.raises(MethodError, match="NaN or infinite"):
        edited(broken)


def test_a_graph_that_is_broken(models: Any) -> None:
    broken = with_unet(models)
    layer = broken.unet.down_blocks[0].attentions[0].transformer_blocks[0].ff.net[2]
    plain = layer.forward
    layer.forward = lambda given: plain(given).detach()
    with pytest.raises(MethodError, match="no gradient reaches"):
        edited(broken)


def test_a_base_prompt_that_is_the_concept_s(models: Any) -> None:
    same = replace(SETTINGS, attribution=replace(QUICK, base_prompt="cat"))
    with pytest.raises(MethodError, match="alike.*77th token"):
        edited(models, same, CadConcept(name="cat", prompts=("cat",), seed=1))


class Adapter(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer

    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.base_layer(given)
        return found


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_adapters_on_the_models(models: Any, part: str) -> None:
    wrapped = with_unet(models)
    object.__setattr__(wrapped, "text_encoder", deepcopy(models.text_encoder))
    if part == "unet":
        attention = wrapped.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
        attention.to_k = Adapter(attention.to_k)
    else:
        mlp = next(one for one in wrapped.text_encoder.modules() if hasattr(one, "fc1"))
        mlp.fc1 = Adapter(mlp.fc1)
    with pytest.raises(MethodError, match=f"the {part} has adapters on 1 layers"):
        edited(wrapped)


def test_quantised_weights(models: Any) -> None:
    whole = with_unet(models)
    owner = whole.unet.down_blocks[0].attentions[0].transformer_blocks[0].ff.net[2]
    small = torch.zeros(owner.weight.shape, dtype=torch.int8)
    owner.weight = nn.Parameter(small, requires_grad=False)
    with pytest.raises(MethodError, match=r"is torch\.int8; expected float32.*unquantised"):
        edited(whole)


def test_tied_weights(models: Any) -> None:
    tied = with_unet(models)
    first, second = tied.unet.down_blocks[0].attentions[0], tied.unet.up_blocks[1].attentions[0]
    second.transformer_blocks[0].ff.net[2].weight = first.transformer_blocks[0].ff.net[2].weight
    with pytest.raises(MethodError, match="are one tensor"):
        edited(tied)


def test_a_model_that_is_distilled_with_guidance(models: Any) -> None:
    distilled = with_unet(models)
    distilled.unet.register_to_config(time_cond_proj_dim=256)
    with pytest.raises(MethodError, match="guidance scale as an input"):
        edited(distilled)


def test_a_flow(models: Any) -> None:
    with pytest.raises(MethodError, match="no table of noise levels"):
        edited(with_scheduler(models, FlowMatchEulerDiscreteScheduler()))


def test_a_sampler_with_more_steps_than_the_model_has_timesteps(models: Any) -> None:
    short = DDIMScheduler.from_config({**models.scheduler.config, "num_train_timesteps": 10})
    many = replace(SETTINGS, attribution=replace(QUICK, sampling_steps=11))
    with pytest.raises(MethodError, match="steps is 11; expected 1 to 10"):
        edited(with_scheduler(models, short), many)


def test_a_patch_on_another_base(models: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny_pipeline)
    name = next(one for one in sorted(base.shapes) if one.startswith("unet/") and "ff.net.2.weight" in one)
    places = Places("elements", base.shapes[name], torch.tensor([1, 5]))
    delta = Delta({name: Rescale(places, torch.tensor(0.0))})
    place, once = tmp_path / "mask.safetensors", tmp_path / "once"
    save_patch(make_patch([Term(delta=delta, source="mask")], base), place)
    apply_patch(load_patch(place), tiny_pipeline, once)
    with pytest.raises(PatchError, match="already"):
        apply_patch(load_patch(place), once, tmp_path / "twice")
    other = build_tiny(tmp_path / "another", dtype=torch.float16, seed=1)
    with pytest.raises(PatchError, match="Is it another base"):
        apply_patch(load_patch(place), other, tmp_path / "edited")


@pytest.mark.parametrize("strength", [1.5, 2.0])
def test_no_strength_turns_the_sign_of_what_is_masked(
    models: Any, tiny_pipeline: Path, tmp_path: Path, strength: float
) -> None:
    base = open_checkpoint(tiny_pipeline)
    name = next(one for one in sorted(base.shapes) if one.startswith("unet/") and "ff.net.2.weight" in one)
    places = Places("elements", base.shapes[name], torch.tensor([1, 5]))
    patch = make_patch([Term(delta=Delta({name: Rescale(places, torch.tensor(0.0))}), source="mask")], base)
    with pytest.raises(PatchError, match="opposite sign; expected at most 1,"):
        apply_patch(patch, tiny_pipeline, tmp_path / "edited", strength=strength)
    assert not (tmp_path / "edited").exists()


def test_a_mask_of_a_few_weights_is_seen_where_it_is_baked_in(models: Any) -> None:
    baked = with_unet(models)
    parameter(baked, NAMES[0]).data.view(-1)[[3, 50, 90, 100, 120]] = 0
    assert "masked-already" in kinds(edited(baked).findings)
    assert "masked-already" not in kinds(edited(models).findings)


# what can go on is noticed


def found_in(**changes: Any) -> set[str]:
    return kinds(attribution_findings("cat", replace(GOOD, **changes)))


def test_nothing_is_noticed_where_nothing_is_wrong() -> None:
    assert not found_in()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("no-gradient", {"empty": ("unet/a.weight",)}),
        ("underflow", {"zeros": 0.002}),
        ("one-timestep", {"by_timestep": {510: 2.5, 520: 2.5, 120: 1.0, 730: 1.0}}),
        ("masked-already", {"masked_already": {"unet/a.weight": 0.01}}),
    ],
)
def test_suspicious_numbers(kind: str, changes: Mapping[str, Any]) -> None:
    assert found_in(**changes) == {kind}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_large_u_net_takes_one_row_at_a_time_on_a_cpu(monkeypatch: Any, device: str) -> None:
    small = SimpleNamespace(unet=torch.nn.Linear(2, 2, device=device))
    assert usual_rows(small) == (25, 16)
    monkeypatch.setattr("surgery.methods.cad.gradients._SMALL", 1)
    assert usual_rows(small) == ((1, 4) if device == "cpu" else (4, 8))


def test_made_up_words_stand_in_the_name_s_place_alone(models: Any) -> None:
    asked: list[tuple[str, ...]] = []

    def pairs(concept: CadConcept, *_: object) -> Any:
        asked.append(concept.prompts)
        raise LookupError

    trial = Trial(models, AttributionSettings(), 1, SimpleNamespace(pairs=pairs))  # type: ignore[arg-type]  # pairs alone is asked for
    (photo,) = concepts_named(["photo"], ["a photo of a {}"])
    with pytest.raises(LookupError):
        trial.made_up(photo)
    assert all(prompt.startswith("a photo of a ") and len(prompt) > 13 for prompt in asked[0])
    assert not any(prompt.endswith("photo") for prompt in asked[0])


@pytest.mark.parametrize(("made_up", "unknown"), [(1.5, False), (2.1, True), (None, False)])
def test_a_concept_that_measures_no_more_than_made_up_words(made_up: float | None, unknown: bool) -> None:
    found = kinds(unknown_findings("cat", 2.0, made_up))
    assert found == ({"unknown-concept"} if unknown else set())


@pytest.mark.slow
def test_pocket_sd_knows_rainbows_and_no_made_up_word() -> None:
    models = load_pipeline(checkpoint_path("pocket-sd"))
    names = components_of(open_checkpoint(checkpoint_path("pocket-sd")).shapes, ["unet/mid_block*.ff.net.2*"])
    quick = AttributionSettings(trajectories=1, sampling_steps=4, graded_steps=1, staggered=False)
    settings = CadSettings(attribution=quick, selection=SelectionSettings(ratio=0.01))
    found = edit(models, concepts_named(["rainbow", "brillig"]), names, settings).findings
    assert [one.subject for one in found if one.kind == "unknown-concept"] == ["brillig"]


def test_gradients_too_small_for_their_type(models: Any) -> None:
    """Scores that underflow in half precision are counted, not guessed."""
    half = with_unet(models)
    half.unet.half()
    # so faint an output that its gradients vanish
    parameter(half, "unet/conv_out.weight").data *= 1e-5
    parameter(half, "unet/conv_out.bias").data += 1
    denoise = replace(QUICK, objective="denoise", pictures=2)
    faint = replace(SETTINGS, attribution=denoise, polarity="negative")
    assert "underflow" in kinds(edited(half, faint).findings)


def test_a_prompt_that_is_cut(models: Any) -> None:
    long = CadConcept(name="cat", prompts=(" ".join(["a"] * 100) + " cat",), seed=1)
    assert "prompt-cut" in kinds(edited(models, concept=long).findings)


def test_velocities(models: Any) -> None:
    scheduler = DDIMScheduler.from_config({**models.scheduler.config, "prediction_type": "v_prediction"})
    assert "velocity" in kinds(edited(with_scheduler(models, scheduler)).findings)


def test_quotas_of_nothing_and_rows_with_too_little(models: Any) -> None:
    for ratio, kind in ((1e-3, "empty-mask"), (0.05, "skipped-tensors")):
        floored = replace(SETTINGS, selection=SelectionSettings(ratio=ratio, rounding="floor"))
        assert kind in kinds(edited(models, floored).findings)
    much = replace(SETTINGS, selection=SelectionSettings(ratio=0.9))
    (report,) = (result := edited(models, much)).masks
    assert report.mask.count < report.wanted
    assert "short-mask" in kinds(result.findings)


def test_a_mask_no_better_than_a_random_one() -> None:
    mask = ComponentMask({"unet/w.weight": Places("elements", (2, 2), torch.tensor([1]))})
    before = Measured(values=torch.ones(2), timesteps=torch.ones(2).long(), sample=torch.arange(2))

    def found(random: float) -> set[str]:
        other = replace(before, values=before.values * random)
        control = Control(before=before, after=replace(before, values=before.values * 0.5), random=(other,))
        findings: list[Finding] = list(
            effect_findings(mask, {"cat": control}, SelectionSettings(), erases=True)
        )
        return kinds(findings)

    assert found(0.6) == {"no-better-than-random"}
    assert not found(0.99)
    # two changes of opposite sign are no small change
    wild = Control(
        before=before,
        after=replace(before, values=before.values * 0.95),
        random=tuple(replace(before, values=before.values * one) for one in (1.8, 0.2)),
    )
    assert (round(wild.random_effect, 6), round(wild.random_size, 6)) == (0.0, 0.8)
    noticed = list(effect_findings(mask, {"cat": wild}, SelectionSettings(), erases=True))
    assert kinds(noticed) == {"no-better-than-random"}


def leaving(left: float, random: float = 1.0, change: float = 3.0) -> Control:
    """What a mask leaves of the concept's direction, and a random one; the measure changes by a factor."""
    before = Measured(values=torch.ones(2), timesteps=torch.ones(2).long(), sample=torch.arange(2))
    after = replace(before, values=before.values * change)
    return Control(before=before, after=after, random=(before,), left=left, random_left=(random,))


@pytest.mark.parametrize(
    ("control", "chosen", "kind"),
    [
        (leaving(0.1), {}, None),
        (leaving(-0.2), {}, None),
        (leaving(0.4), {}, "still-there"),
        (leaving(0.4), {"strength": 0.5}, None),
        (leaving(0.4), {"left": 0.4}, None),
        (leaving(0.4, random=0.6), {}, "no-better-than-random"),
        (leaving(1.2), {}, "wrong-way"),
    ],
)
def test_what_is_left_says_whether_a_mask_erases_though_the_measure_rises(
    control: Control, chosen: dict[str, float], kind: str | None
) -> None:
    mask = ComponentMask({"unet/w.weight": Places("elements", (2, 2), torch.tensor([1]))})
    settings = SelectionSettings(**chosen)  # type: ignore[arg-type]  # of the fields that are numbers
    assert kinds(effect_findings(mask, {"cat": control}, settings, erases=True)) == (
        {kind} if kind else set()
    )
    assert not kinds(effect_findings(ComponentMask(), {"cat": control}, settings, erases=True))


def test_a_mask_that_leaves_more_than_was_asked_for_says_so_and_what_helps() -> None:
    asked = SelectionSettings(left=0.0)
    assert not kinds(grown_findings({"cat": 0.0}, asked))
    (found,) = grown_findings({"cat": -0.1, "dog": 0.3}, asked)
    assert (found.kind, found.subject) == ("not-reached", "dog")
    assert "30 % of its direction is left and 0 % was asked for" in found.message
    assert "more components" in found.message
    (weak,) = grown_findings({"cat": 0.3}, replace(asked, strength=0.5))
    assert "(strength)" in weak.message


# what would go wrong elsewhere does not here


def gradients(models: Any, pairs: Pairs, *, checkpointing: bool = False) -> dict[str, Tensor]:
    sums = Sums()
    add_gradients(models, pairs, Grading(names=NAMES, checkpointing=checkpointing), sums)
    return sums.gradients


def test_dropout_is_off(models: Any, pairs: Pairs) -> None:
    dropping = with_unet(models)
    dropping.unet.train()
    for module in dropping.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    torch.testing.assert_close(gradients(dropping, pairs), gradients(models, pairs), rtol=0, atol=0)
    assert torch.equal(measure(dropping, pairs, {}).values, measure(models, pairs, {}).values)
    assert dropping.unet.training


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[None]]:
    calls: list[None] = []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def test_checkpointing_computes_again_though_the_model_is_in_evaluation(models: Any, pairs: Pairs) -> None:
    layer: Callable[..., Any] = models.unet.down_blocks[0].attentions[0].transformer_blocks[0].ff
    assert isinstance(layer, nn.Module)
    counts = {}
    for sparing in (False, True):
        with calls_of(layer) as calls:
            gradients(models, pairs, checkpointing=sparing)
        counts[sparing] = len(calls)
    assert counts[True] == 2 * counts[False]
    assert not models.unet.is_gradient_checkpointing


def test_points_of_a_path_carry_the_sampler_s_own_timesteps(models: Any) -> None:
    every = replace(QUICK, graded_steps=QUICK.sampling_steps, trajectories=1)
    (found,) = pairs_of(models, [CAT], every)
    solver = DDIMScheduler.from_config(models.scheduler.config)
    solver.set_timesteps(QUICK.sampling_steps)
    assert found.timesteps.tolist() == solver.timesteps.tolist()


def test_half_precision_is_summed_in_float32_and_not_averaged_over_pixels(models: Any, pairs: Pairs) -> None:
    half = with_unet(models)
    half.unet.half()
    found, exact = gradients(half, pairs), gradients(models, pairs)
    for name in NAMES:
        assert found[name].dtype == torch.float32
        near = 0.02 * float(exact[name].abs().max())
        torch.testing.assert_close(found[name], exact[name], rtol=0.1, atol=near)


def test_a_schedule_of_noise_that_ends_in_pure_noise(models: Any) -> None:
    scheduler = DDIMScheduler.from_config({**models.scheduler.config, "rescale_betas_zero_snr": True})
    with pytest.raises(MethodError, match="ends in pure noise"):
        edited(with_scheduler(models, scheduler))


def test_a_control_that_is_no_number(models: Any, pairs: Pairs) -> None:
    weight = parameter(models, NAMES[0])
    with pytest.raises(MethodError, match="NaN or infinite"):
        measure(models, pairs, {NAMES[0]: torch.full_like(weight, torch.nan)})


def test_a_base_prompt_that_is_the_concept_s_with_even_weights(models: Any) -> None:
    same = replace(QUICK, base_prompt="cat", weighting="even")
    with pytest.raises(MethodError, match="for the base prompt are alike"):
        edited(models, replace(SETTINGS, attribution=same), CadConcept(name="cat", prompts=("cat",), seed=1))
