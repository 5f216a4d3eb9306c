"""The whole way from concepts to masks: effect on the measure, resuming, retaining, several concepts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.anatomy import weights_digest
from surgery.delta import Places, Rescale
from surgery.errors import MethodError
from surgery.methods.cad import attribution as attribution_room
from surgery.methods.cad import gradients as gradients_room
from surgery.methods.cad import maker as maker_room
from surgery.methods.cad import ranked as ranked_room
from surgery.methods.cad.checks import effect_findings
from surgery.methods.cad.control import Control
from surgery.methods.cad.door import edit
from surgery.methods.cad.maker import Maker
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import CadConcept, Measured
from surgery.methods.cad.settings import AttributionSettings, CadSettings, SelectionSettings
from surgery.store import Store
from tests.methods.cad.conftest import CAT, NAMES, QUICK

DOG = CadConcept(name="dog", prompts=("a photo of a dog",), seed=4)
DENOISED = replace(QUICK, objective="denoise")
SOME = ComponentMask({"unet/w.weight": Places("elements", (2, 2), torch.tensor([1]))})
SETTINGS = CadSettings(attribution=QUICK, selection=SelectionSettings(ratio=0.05), controls=False)


def places(result: Any, name: str = NAMES[0]) -> set[int]:
    form = result.delta.terms[name]
    assert isinstance(form, Rescale)
    assert form.places.index is not None
    return set(form.places.index.tolist())


def test_a_mask_lowers_the_measure_more_than_random_ones(models: Any) -> None:
    # so weak that the first order tells; no concept was ever learned here
    result = edit(models, [CAT], NAMES, replace(with_selection(strength=0.1), controls=True))
    (report,) = result.masks
    (control,) = report.controls
    assert control.change < 0
    assert control.effect < control.random_effect
    sizes = [models.unet.get_parameter(name.removeprefix("unet/")).numel() for name in NAMES]
    assert report.mask.count <= report.wanted == round(0.05 * sum(sizes))


def test_a_mask_of_the_other_polarity_raises_it(models: Any) -> None:
    weak = replace(with_selection(strength=0.1), controls=True, polarity="negative")
    result = edit(models, [CAT], NAMES, weak)
    assert result.masks[0].controls[0].change > 0


def test_a_mask_grows_until_so_much_of_the_direction_is_left(models: Any) -> None:
    found = {}
    for left in (0.97, 0.9):
        (report,) = edit(models, [CAT], NAMES, replace(with_selection(left=left), controls=True)).masks
        (control,) = report.controls
        assert control.left is not None
        assert control.effect == control.left - 1
        found[left] = (report.mask.count, report.ratio, control.left)
        assert report.as_json()["ratio"] == report.ratio
    assert 0 < found[0.97][0] < found[0.9][0]
    assert found[0.97][1] < found[0.9][1]
    # the trial is on other noise
    assert found[0.97][2] > found[0.9][2] > 0.5


@pytest.mark.parametrize("controls", [False, True])
def test_what_no_mask_reaches_is_said_with_controls_and_without(models: Any, controls: bool) -> None:
    result = edit(models, [CAT], NAMES, replace(with_selection(left=-1.0), controls=controls))
    assert "not-reached" in {finding.kind for finding in result.findings}


def test_an_empty_mask_that_was_to_erase_is_said(models: Any) -> None:
    nothing = with_selection(left=0.5, ranking="retain", retain_weight=1e9)
    result = edit(models, [CAT], NAMES, nothing, retain=[DOG])
    assert result.masks[0].mask.count == 0
    assert "not-reached" in {finding.kind for finding in result.findings}


def test_one_mask_for_several_concepts_grows_until_the_last_is_gone(models: Any) -> None:
    summed = replace(with_selection(left=0.97), combine="sum")
    together = edit(models, [CAT, DOG], NAMES, summed).masks[0]
    assert together.mask.count > 0
    assert together.concepts == ("cat", "dog")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SETTINGS, batch=0), "batch is 0; expected 1 or more"),
        (replace(SETTINGS, micro_batch=-1), "micro_batch is -1; expected 1 or more"),
    ],
)
def test_batches_of_nothing_are_refused(models: Any, settings: CadSettings, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        edit(models, [CAT], NAMES, settings)


def test_nothing_is_left_of_a_masked_weight_and_the_models_stay(models: Any) -> None:
    before = weights_digest(models.unet)
    result = edit(models, [CAT], NAMES, SETTINGS)
    assert weights_digest(models.unet) == before
    form = result.delta.terms[NAMES[0]]
    assert isinstance(form, Rescale)
    assert float(form.factors) == 0.0


@contextmanager
def drawing(models: Any, stop: int = 0) -> Iterator[list[None]]:
    """Counts passes of the sampler; a stop comes in the place of one of them."""
    calls: list[None] = []

    def count(*_: Any) -> None:
        if not torch.is_grad_enabled():
            calls.append(None)
            if len(calls) == stop:
                raise KeyboardInterrupt

    handle = models.unet.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("objective", ["base_gap", "denoise"])
def test_paths_and_pictures_drawn_before_a_stop_are_not_drawn_again(
    models: Any, tmp_path: Path, objective: Any
) -> None:
    few = replace(QUICK, objective=objective, trajectories=3, pictures=3)
    apart, store = replace(SETTINGS, attribution=few, batch=1), Store(tmp_path)
    with drawing(models) as calls:
        whole = edit(models, [CAT], NAMES, apart)
    each = len(calls) // 3
    with drawing(models, stop=2 * each), pytest.raises(KeyboardInterrupt):
        edit(models, [CAT], NAMES, apart, store=store)
    with drawing(models) as calls:
        resumed = edit(models, [CAT], NAMES, apart, store=store)
    assert len(calls) == 2 * each  # of the second and the third
    for name in NAMES:
        assert places(resumed, name) == places(whole, name)


def test_a_stopped_attribution_goes_on_and_gives_the_same_bits(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = replace(SETTINGS, micro_batch=2)  # a path fills one
    whole = edit(models, [CAT], NAMES, apart)
    store, calls = Store(tmp_path), []
    grade = gradients_room.add_gradients

    def counted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return grade(*given)

    monkeypatch.setattr(attribution_room, "add_gradients", counted)
    with pytest.raises(KeyboardInterrupt):
        edit(models, [CAT], NAMES, apart, store=store)
    resumed = edit(models, [CAT], NAMES, apart, store=store)
    assert len(calls) == 3  # the first path was not done again
    assert {name: places(resumed, name) for name in NAMES} == {name: places(whole, name) for name in NAMES}


@pytest.mark.parametrize("retain", [(), (DOG,)])
def test_a_run_that_stops_behind_the_last_path_goes_on(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retain: tuple[CadConcept, ...]
) -> None:
    settings = with_selection(ranking="retain") if retain else SETTINGS
    whole = edit(models, [CAT], NAMES, settings, retain=retain)
    store, calls = Store(tmp_path), []
    rank = ranked_room.rank

    def stopped(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            list(given[0]())  # and what it asks for
            raise KeyboardInterrupt
        return rank(*given, **named)

    monkeypatch.setattr(maker_room, "rank", stopped)
    with pytest.raises(KeyboardInterrupt):
        edit(models, [CAT], NAMES, settings, retain=retain, store=store)
    monkeypatch.setattr(attribution_room, "add_gradients", lambda *_: pytest.fail("attributed again"))
    resumed = edit(models, [CAT], NAMES, settings, retain=retain, store=store)
    assert {name: places(resumed, name) for name in NAMES} == {name: places(whole, name) for name in NAMES}


@pytest.mark.parametrize("rule", ["row", "tensor", "global"])
def test_a_count_is_as_many_weights(models: Any, rule: Any) -> None:
    for count in (1, 7, 30):
        (report,) = edit(models, [CAT], NAMES, with_selection(count=count, rule=rule)).masks
        assert report.mask.count == report.wanted == count
        # nor is anything cut off where ratios would be rounded down
        (report,) = edit(models, [CAT], NAMES, with_selection(count=count, rule=rule, rounding="floor")).masks
        assert report.mask.count == count


def test_another_ratio_needs_no_new_attribution(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    first = edit(models, [CAT], NAMES, with_selection(rule="tensor"), store=store)
    monkeypatch.setattr(attribution_room, "add_gradients", lambda *_: pytest.fail("attributed again"))
    smaller = edit(models, [CAT], NAMES, with_selection(rule="tensor", ratio=0.02), store=store)
    assert places(smaller) < places(first)


def with_selection(**knobs: Any) -> CadSettings:
    return replace(SETTINGS, selection=replace(SETTINGS.selection, **knobs))


def test_several_concepts_as_union_sum_and_quota(models: Any) -> None:
    alone = [places(edit(models, [one], NAMES, SETTINGS)) for one in (CAT, DOG)]
    union = edit(models, [CAT, DOG], NAMES, SETTINGS)
    assert places(union) == alone[0] | alone[1]
    total = edit(models, [CAT, DOG], NAMES, replace(SETTINGS, combine="sum"))
    assert [mask.concepts for mask in total.masks] == [("cat", "dog")]
    assert len(places(total)) < len(places(union))
    quota = edit(models, [CAT, DOG], NAMES, replace(SETTINGS, combine="quota"))
    assert {mask.wanted for mask in quota.masks} <= {
        round(union.masks[0].wanted / 2) + one for one in (-1, 0, 1)
    }


def test_a_patch_carries_scores_where_that_is_asked_for(models: Any) -> None:
    plain = edit(models, [CAT, DOG], NAMES, SETTINGS)
    scored = edit(models, [CAT, DOG], NAMES, with_selection(scores=True))
    for name in NAMES:
        form = scored.delta.terms[name]
        assert isinstance(form, Rescale)
        assert form.scores is not None
        assert places(scored, name) == places(plain, name)
        assert float(form.scores.min()) > 0
    assert max(float(form.scores.max()) for form in scored.delta.terms.values()) == 1.0  # type: ignore[union-attr]
    # the smaller mask is the part with the larger scores
    (one,) = edit(models, [CAT], NAMES, with_selection(scores=True, rule="global")).masks
    (less,) = edit(models, [CAT], NAMES, with_selection(scores=True, rule="global", ratio=0.025)).masks
    both = torch.cat([one.mask.scored(name) for name in sorted(one.mask.places)])  # type: ignore[misc]
    assert less.mask.count == int((both >= both.sort(descending=True).values[less.mask.count - 1]).sum())


def test_what_masks_share_and_what_one_has_alone(models: Any) -> None:
    much = replace(with_selection(ratio=0.3), controls=True)
    cat, dog = (places(edit(models, [one], NAMES, much)) for one in (CAT, DOG))
    both = edit(models, [CAT, DOG], NAMES, replace(much, combine="intersection"))
    assert places(both) == cat & dog != set()
    assert [(one.concepts, len(one.controls)) for one in both.masks] == [(("cat", "dog"), 2)]
    alone = edit(models, [CAT, DOG], NAMES, replace(much, combine="difference"))
    assert places(alone) == cat - dog != set()
    assert [one.concepts for one in alone.masks] == [("cat",)]
    assert not {"empty-mask", "short-mask"} & {one.kind for one in (*both.findings, *alone.findings)}
    tiny = replace(with_selection(count=1, rule="global"), combine="difference")
    nothing = edit(models, [CAT, DOG], NAMES, tiny)
    assert [
        (one.kind, "combined" in one.message) for one in nothing.findings if one.kind == "empty-mask"
    ] == [("empty-mask", True)]


def test_what_others_need_is_left_out_of_the_mask(models: Any) -> None:
    plain = places(edit(models, [CAT], NAMES, SETTINGS))
    for ranking in ("retain", "damage"):
        spared = places(
            edit(models, [CAT], NAMES, with_selection(ranking=ranking, retain_weight=3.0), retain=[DOG])
        )
        assert spared != plain
    protected = places(edit(models, [CAT], NAMES, with_selection(protect=0.2), retain=[DOG]))
    (of_dog,) = edit(models, [DOG], NAMES, with_selection(ratio=0.002, rule="tensor")).masks
    top = of_dog.mask.places[NAMES[0]]
    assert top.index is not None
    assert not protected & set(top.index.tolist())


@pytest.mark.parametrize("kept", [False, True])
def test_concepts_whose_paths_fit_into_one_batch_draw_them_together(
    models: Any, tmp_path: Path, kept: bool
) -> None:
    settings = replace(SETTINGS, controls=False, batch=8)
    counts: list[int] = []
    counting = models.unet.register_forward_pre_hook(
        lambda _, given: counts.append(len(given[0])) if not torch.is_grad_enabled() else None
    )
    store = Store(tmp_path) if kept else None
    try:
        together = edit(models, [CAT, DOG], NAMES, settings, store=store)
        shared, counts[:] = list(counts), []
        alone = [edit(models, [one], NAMES, settings) for one in (CAT, DOG)]
        apart = list(counts)
        counts.clear()
        again = edit(models, [CAT, DOG], NAMES, settings, store=store)
    finally:
        counting.remove()
    assert sum(shared) == sum(apart)
    assert len(shared) == len(apart) / 2
    assert bool(counts) != kept
    assert places(again) == places(together)
    both = places(alone[0]) | places(alone[1])
    assert len(places(together) & both) > 0.98 * len(both)


def test_a_count_takes_the_ratio_s_place(models: Any) -> None:
    counted = edit(models, [CAT], NAMES, with_selection(rule="global", count=37))
    assert counted.masks[0].mask.count == 37
    with pytest.raises(MethodError, match="count is 100000000; the weights looked at are"):
        edit(models, [CAT], NAMES, with_selection(count=100_000_000))


def test_damage_is_what_scores_are_divided_by(models: Any) -> None:
    bird = CadConcept(name="bird", prompts=("a photo of a fish",), seed=5)
    settings = with_selection(ranking="damage", retain_weight=2.0)
    maker = Maker(models, NAMES, settings, (bird,), None)
    needed = maker._needed_by_others()
    everything = torch.cat([one.flatten() for one in needed.values()])
    assert float(everything.mean()) == pytest.approx(1.0, rel=1e-4)
    assert bool((everything >= 0).all())
    ranked, _ = maker._rank((CAT,), 1.0 - 1e-9)
    before, _ = Maker(models, NAMES, SETTINGS, (), None)._rank((CAT,), 1.0 - 1e-9)
    for name in NAMES:
        full = torch.full((needed[name].numel(),), torch.nan)
        full[before.candidates[name].places] = before.candidates[name].scores
        kept = ranked.candidates[name]
        expected = full[kept.places] / (1 + 2.0 * needed[name].flatten()[kept.places])
        torch.testing.assert_close(kept.scores, expected, rtol=1e-3, atol=1e-9)


def test_a_penalty_counts_once_however_many_concepts_share_a_mask(models: Any) -> None:
    bird = CadConcept(name="bird", prompts=("a photo of a fish",), seed=5)
    settings = replace(with_selection(ranking="retain", retain_weight=0.5), combine="sum")
    maker = Maker(models, NAMES, settings, (bird,), None)
    plain = Maker(models, NAMES, replace(SETTINGS, combine="sum"), (), None)
    penalty = maker._needed_by_others()
    assert all(bool((one >= 0).all()) for one in penalty.values())
    ranked, _ = maker._rank((CAT, DOG), 1.0 - 1e-9)
    before, _ = plain._rank((CAT, DOG), 1.0 - 1e-9)
    for name in NAMES:
        full = torch.full((penalty[name].numel(),), torch.nan)
        full[before.candidates[name].places] = before.candidates[name].scores
        kept = ranked.candidates[name]
        expected = full[kept.places] - 0.5 * penalty[name].flatten()[kept.places]
        torch.testing.assert_close(kept.scores, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("polarity", "kind"), [("positive", "wrong-way"), ("negative", "wrong-way")])
def test_a_mask_that_does_the_opposite_is_noticed(models: Any, polarity: Any, kind: str) -> None:
    before = Measured(values=torch.ones(2), timesteps=torch.ones(2).long(), sample=torch.arange(2))
    up, down = (replace(before, values=before.values * factor) for factor in (1.5, 0.5))
    for after, wrong in ((up, polarity == "positive"), (down, polarity == "negative")):
        control = Control(before=before, after=after, random=(before,))
        found = effect_findings(SOME, {"cat": control}, SETTINGS.selection, erases=polarity == "positive")
        assert (kind in {finding.kind for finding in found}) == wrong


def test_of_a_measure_below_nothing_more_is_above_nought() -> None:
    low = Measured(values=torch.tensor([-2.0]), timesteps=torch.ones(1).long(), sample=torch.zeros(1).long())
    high = replace(low, values=torch.tensor([-1.0]))
    assert Control(before=low, after=high, random=(low,)).change == pytest.approx(0.5)


def test_scores_over_their_errors_rank_otherwise(models: Any) -> None:
    errors = replace(QUICK, standard_errors=True)
    by_t = replace(with_selection(ranking="t"), attribution=errors)
    assert places(edit(models, [CAT], NAMES, by_t)) != places(edit(models, [CAT], NAMES, SETTINGS))


def test_amplifying_looks_at_how_pictures_are_denoised(models: Any) -> None:
    denoise = AttributionSettings(objective="denoise", pictures=2, graded_steps=2, sampling_steps=2)
    result = edit(models, [CAT], NAMES, replace(SETTINGS, attribution=denoise, polarity="negative"))
    assert result.masks[0].facts[0].measure < 0
    assert result.masks[0].mask.count > 0


@pytest.mark.parametrize(
    ("settings", "retain", "message"),
    [
        (with_selection(ranking="retain"), [], "looks at concepts to retain"),
        (with_selection(protect=0.1), [], "looks at concepts to retain"),
        (with_selection(ranking="t"), [], "standard_errors"),
        (with_selection(left=0.0, count=3), [], "expected one of the two"),
        (with_selection(left=1.0), [], "below 1"),
        (replace(with_selection(left=0.0), attribution=DENOISED), [], "denoise knows no base prompt"),
        (replace(with_selection(left=0.0), polarity="negative"), [], "how far a concept is erased"),
        (replace(with_selection(left=0.0), combine="quota"), [], "use union or sum"),
        (replace(SETTINGS, combine="intersection"), [], "two concepts or more"),
        (with_selection(strength=1.5), [], r"strength is 1\.5"),
        (with_selection(ratio=1.0), [], r"ratio is 1\.0"),
        (SETTINGS, [CAT], "is to go and to be retained"),
        (replace(with_selection(left=0.0), combine="difference"), [], "use union or sum"),
        (replace(with_selection(scores=True), combine="intersection"), [], "leaves no scores"),
        (replace(SETTINGS, attribution=replace(QUICK, graded_steps=9)), [], "no more points than steps"),
        (replace(SETTINGS, attribution=replace(QUICK, restart=True)), [], "of every length"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(
    models: Any, settings: CadSettings, retain: list[CadConcept], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        edit(models, [CAT], NAMES, settings, retain=retain)


def test_a_mask_that_is_in_already_is_noticed(models: Any) -> None:
    weight = models.unet.get_parameter(NAMES[0].removeprefix("unet/"))
    before = weight.detach().clone()
    try:
        weight.data[:, :4] = 0
        result = edit(models, [CAT], NAMES, SETTINGS)
    finally:
        weight.data.copy_(before)
    assert "masked-already" in {finding.kind for finding in result.findings}


def test_a_concept_that_is_the_base_prompt_is_refused(models: Any) -> None:
    nothing = CadConcept(name="nothing", prompts=("",), seed=1)
    with pytest.raises(MethodError, match="the measure of 'nothing' is nothing"):
        edit(models, [nothing], NAMES, SETTINGS)
