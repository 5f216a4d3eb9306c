"""The whole method behind one door."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.anatomy import reading, text_stack, weights_digest
from surgery.errors import ConceptError, MethodError
from surgery.methods.emcid import (
    PUBLISHED,
    ConceptEdit,
    ConceptRules,
    CorpusSettings,
    EmcidModels,
    EmcidResult,
    OffsetSettings,
    UpdateSettings,
    door,
    edit,
    optimise_offsets,
)
from surgery.store import Store
from tests.support.concepts import CAT, DOCTOR, FORGET, PIZZA, captions

TEXT = OffsetSettings(mode="text", steps=30, batch=2)
PLAIN = UpdateSettings(ridge=1.0)
CORPUS = CorpusSettings(shrinkage=0.1, include_padding=False)
EDITS = [CAT, PIZZA, DOCTOR, FORGET]


def run(models: EmcidModels, edits: list[ConceptEdit] = EDITS, **options: Any) -> EmcidResult:
    given = {"offsets": TEXT, "update": PLAIN, "captions": captions(), "corpus": CORPUS, **options}
    return edit(models, edits, **given)


def bits(result: EmcidResult) -> dict[str, bytes]:
    return {name: result.delta.materialise(name).numpy().tobytes() for name in result.delta.terms}


def edited(models: EmcidModels, result: EmcidResult) -> Any:
    encoder = copy.deepcopy(models.text_encoder)
    with torch.no_grad():
        for report in result.layers:
            text_stack(encoder).blocks[report.layer].mlp.fc2.weight += result.delta.materialise(
                report.name
            ).float()
    return encoder


def features(models: EmcidModels, encoder: Any, prompt: str) -> torch.Tensor:
    tokens = models.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        pooled: torch.Tensor = encoder(tokens.input_ids).pooler_output[0]
    return pooled


def test_the_edited_encoder_has_the_offset_at_the_source_and_little_elsewhere(models: EmcidModels) -> None:
    result = run(models, [CAT])
    encoder, offset = edited(models, result), result.targets[0].offset

    def moved(prompt: str) -> torch.Tensor:
        streams = []
        for given in (models.text_encoder, encoder):
            with torch.no_grad(), reading({"ten": text_stack(given).blocks[10]}) as seen:
                given(**models.tokenizer(prompt, return_tensors="pt"))
            streams.append(seen["ten"][0, -2])
        return streams[1] - streams[0]

    # the mean over the three prompts arrives whole, a single prompt nearly so
    assert float((moved("A photo of cat") - offset).norm()) < 0.3 * float(offset.norm())
    assert float(moved("the picture of fish").norm()) < 0.25 * float(offset.norm())


def test_the_delta_names_the_edited_layers_and_nothing_else(models: EmcidModels) -> None:
    result = run(models, update=replace(PLAIN, layers=(7, 10)))
    assert set(result.delta.terms) == {
        f"text_encoder/text_model.encoder.layers.{layer}.mlp.fc2.weight" for layer in (7, 10)
    }


def test_the_order_of_the_edits_changes_not_one_bit(models: EmcidModels) -> None:
    forth, back = run(models), run(models, EDITS[::-1])
    assert bits(forth) == bits(back)
    assert [report.label for report in forth.edits] == [
        "cat → 'dog'",
        "pizza → 'fish'",
        "female doctor → 'male'",
        "style → ''",
    ]
    assert forth.edits == back.edits[::-1]
    assert [target.concept.label for target in back.targets] == [report.label for report in back.edits]


def test_a_stored_run_is_the_same_to_the_bit(models: EmcidModels, tmp_path: Path) -> None:
    plain = bits(run(models))
    assert bits(run(models, store=Store(tmp_path))) == plain
    assert bits(run(models, store=Store(tmp_path))) == plain


def test_the_models_are_not_changed_and_keep_their_state(models: EmcidModels) -> None:
    models.text_encoder.train()
    before = weights_digest(models.text_encoder)
    run(models)
    assert weights_digest(models.text_encoder) == before
    assert models.text_encoder.training
    models.text_encoder.eval()


def test_half_precision_models_are_worked_with_in_single_precision(models: EmcidModels) -> None:
    half = replace(models, text_encoder=copy.deepcopy(models.text_encoder).half())
    # the tiny weights are float16 on disk, so that nothing is lost on the way
    assert bits(run(half)) == bits(run(models))
    assert next(half.text_encoder.parameters()).dtype == torch.float16
    losses = [[report.rounding_loss for report in run(given).layers] for given in (half, models)]
    assert min(losses[0]) > 10 * max(losses[1])


def test_what_the_checkpoint_stores_decides_the_rounding_loss(models: EmcidModels) -> None:
    stored = run(replace(models, stored_dtype=torch.float16)).layers[0].rounding_loss
    assert stored > 10 * run(models).layers[0].rounding_loss


def test_preserved_names_reach_the_update(models: EmcidModels) -> None:
    plain, kept = run(models), run(models, preserve=["dog"], update=replace(PLAIN, preserve_weight=100.0))
    moved = [
        float(
            (
                features(models, edited(models, result), "A photo of dog")
                - features(models, models.text_encoder, "A photo of dog")
            ).norm()
        )
        for result in (plain, kept)
    ]
    assert moved[1] < 0.5 * moved[0]


def test_a_source_cannot_be_preserved_as_well(models: EmcidModels) -> None:
    result = run(models, preserve=["cat", "CAT"])
    assert [f.subject for f in result.findings if f.kind == "preserved-source"] == ["cat"]


def test_neither_the_order_nor_the_spelling_of_preserved_names_changes_a_bit(models: EmcidModels) -> None:
    assert bits(run(models, preserve=["dog", "fish"])) == bits(run(models, preserve=["Fish", "dog", "fish"]))


def test_a_name_to_preserve_that_cannot_be_read_is_an_error(models: EmcidModels) -> None:
    with pytest.raises(ConceptError, match="preserve ' '"):
        run(models, preserve=[" "])


def test_rules_reach_the_concepts(models: EmcidModels) -> None:
    edits = [CAT, replace(CAT, destination="fish")]
    with pytest.raises(ConceptError, match="in several ways"):
        run(models, edits)
    result = run(models, edits, rules=ConceptRules(conflicts="last"))
    assert [report.label for report in result.edits] == ["cat → 'fish'"]


def test_settings_out_of_range_are_refused_before_any_work(models: EmcidModels) -> None:
    with pytest.raises(MethodError, match="update.layers"):
        run(models, update=replace(PLAIN, layers=(11,)))


def test_findings_of_all_steps_arrive(models: EmcidModels) -> None:
    result = run(models, [CAT, replace(CAT), ConceptEdit(source="dog", destination="fish")])
    assert {"duplicate", "chain"} <= {finding.kind for finding in result.findings}


def test_only_identities_leave_the_model_as_it_is(models: EmcidModels) -> None:
    result = run(models, [ConceptEdit(source="cat", destination="cat")])
    assert result.delta.terms == {}
    assert [finding.kind for finding in result.findings if finding.kind == "identity"] == ["identity"]


def spoiled(monkeypatch: pytest.MonkeyPatch, **change: Any) -> None:
    """Let the first concept of Stage I end badly."""
    learn = optimise_offsets

    def bad(*arguments: Any, **options: Any) -> Any:
        first, *others = learn(*arguments, **options)
        return [replace(first, **change), *others]

    monkeypatch.setattr(door, "optimise_offsets", bad)


def test_a_concept_whose_loss_is_not_finite_is_dropped_with_its_reason(
    models: EmcidModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, finite=False, offset=torch.full((32,), float("nan")))
    result = run(models, [CAT, PIZZA])
    (finding,) = [finding for finding in result.findings if finding.severity == "fault"]
    assert finding.kind == "not-finite"
    assert len(result.edits) == 1
    assert finding.subject not in {report.label for report in result.edits}


def test_a_concept_whose_loss_did_not_fall_is_left_out_unless_asked_for(
    models: EmcidModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, first_loss=1.0, last_loss=2.0)
    dropped = run(models, [CAT, PIZZA])
    kept = run(models, [CAT, PIZZA], offsets=replace(TEXT, keep_unconverged=True))
    assert (len(dropped.edits), len(kept.edits)) == (1, 2)
    for result, left_out in ((dropped, True), (kept, False)):
        (message,) = [found.message for found in result.findings if found.kind == "not-converged"]
        assert ("is left out" in message) == left_out


def test_no_concept_left_is_an_error_with_the_reasons(
    models: EmcidModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, first_loss=1.0, last_loss=2.0)
    with pytest.raises(MethodError, match=r"no concept could be learned. cat → 'dog': its loss did not fall"):
        run(models, [CAT])


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_published_set_runs(models: EmcidModels, preset: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    offsets, update = PUBLISHED[preset]
    given = [replace(CAT, kind="style", images=(tmp_path / "red.png",) if preset == "pictures" else ())]
    result = run(models, given, offsets=replace(offsets, steps=2, sampling_steps=1), update=update)
    assert [report.layer for report in result.layers] == list(update.layers)


def test_another_device_gets_copies(models: EmcidModels) -> None:
    moved = door._working(models, "meta")
    assert text_stack(moved.text_encoder).device.type == "meta"
    assert text_stack(models.text_encoder).device.type == "cpu"
    assert next(moved.unet.parameters()).device.type == "meta"
    assert door._working(models, "cpu").unet is models.unet
