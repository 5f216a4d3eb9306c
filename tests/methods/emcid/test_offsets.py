"""Stage I as a whole: stored batches, resumed runs, missing parts, faults."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from surgery.anatomy import weights_digest
from surgery.errors import MethodError
from surgery.methods.emcid import ConceptEdit, EmcidModels, OffsetSettings, Target, offsets, optimise_offsets
from surgery.methods.emcid.offsets import findings_of
from surgery.methods.emcid.problem import problem_of
from surgery.store import Store
from tests.support.concepts import CAT, DOCTOR, FORGET, PIZZA, concepts_of

TEXT = OffsetSettings(mode="text", steps=8, batch=2)
BOTH = OffsetSettings(mode="both", steps=4, batch=2, bank_size=2, sampling_steps=2)
EDITS = (CAT, PIZZA, DOCTOR, FORGET)


def same(one: list[Target], other: list[Target]) -> bool:
    return all(
        torch.equal(a.offset, b.offset) and a.steps == b.steps for a, b in zip(one, other, strict=True)
    )


def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_bits(
    models: EmcidModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concepts = concepts_of(models.tokenizer, *EDITS)
    whole = optimise_offsets(models, concepts, BOTH)
    calls: list[Any] = []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return problem_of(*arguments)

    monkeypatch.setattr(offsets, "problem_of", killed)
    with pytest.raises(KeyboardInterrupt):
        optimise_offsets(models, concepts, BOTH, store=Store(tmp_path))
    resumed = optimise_offsets(models, concepts, BOTH, store=Store(tmp_path))
    assert len(calls) == 3  # the first batch was not computed again
    assert same(resumed, whole)


def test_stored_offsets_are_found_again(models: EmcidModels, tmp_path: Path) -> None:
    concepts, store = concepts_of(models.tokenizer, *EDITS), Store(tmp_path)
    one = optimise_offsets(models, concepts, TEXT, store=store)
    entries = sorted(tmp_path.glob("*/*/done.json"))
    other = optimise_offsets(models, concepts, TEXT, store=store)
    assert len(entries) == 2
    assert sorted(tmp_path.glob("*/*/done.json")) == entries
    assert same(one, other)


@pytest.mark.parametrize(
    ("edit", "settings", "layer"),
    [
        (replace(CAT, destination="fish"), BOTH, 10),
        (replace(CAT, templates=("the {}",)), BOTH, 10),
        (replace(CAT, seed=1), BOTH, 10),
        (CAT, replace(BOTH, steps=5), 10),
        (CAT, replace(BOTH, images="none"), 10),
        (CAT, BOTH, 9),
    ],
)
def test_what_changes_an_offset_changes_its_key(
    models: EmcidModels, tmp_path: Path, edit: ConceptEdit, settings: OffsetSettings, layer: int
) -> None:
    store = Store(tmp_path)
    optimise_offsets(models, concepts_of(models.tokenizer, CAT), BOTH, store=store)
    optimise_offsets(models, concepts_of(models.tokenizer, edit), settings, layer=layer, store=store)
    assert len(list(tmp_path.glob("*/*/done.json"))) == 2


@pytest.mark.parametrize("change", [{"keep_unconverged": True}, {"batch": 7}])
def test_what_changes_no_bit_does_not_change_the_key(
    models: EmcidModels, tmp_path: Path, change: dict[str, Any]
) -> None:
    store, concepts = Store(tmp_path), concepts_of(models.tokenizer, CAT)
    optimise_offsets(models, concepts, TEXT, store=store)
    optimise_offsets(models, concepts, replace(TEXT, **change), store=store)
    assert len(list(tmp_path.glob("*/*/done.json"))) == 1


def test_the_weight_of_an_edit_is_not_stage_one_s_business(models: EmcidModels, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for edit in (CAT, replace(CAT, weight=2.0)):
        optimise_offsets(models, concepts_of(models.tokenizer, edit), TEXT, store=store)
    assert len(list(tmp_path.glob("*/*/done.json"))) == 1


def test_nothing_of_the_models_is_changed(models: EmcidModels) -> None:
    parts = (models.text_encoder, models.unet, models.vae)
    before = [weights_digest(part) for part in parts]
    optimise_offsets(models, concepts_of(models.tokenizer, CAT), BOTH)
    assert [weights_digest(part) for part in parts] == before
    assert all(weight.grad is None for part in parts for weight in part.parameters())


@pytest.mark.parametrize("mode", ["text", "noise", "both"])
def test_every_mode_lowers_its_loss(models: EmcidModels, mode: Any) -> None:
    settings = replace(BOTH, mode=mode, steps=24, patience=None)
    for target in optimise_offsets(models, concepts_of(models.tokenizer, CAT, PIZZA), settings):
        assert target.converged
        assert float(target.offset.norm()) <= 1.5 * float(target.source.norm()) * 1.0001


def test_the_cross_attention_metric_lowers_its_loss(models: EmcidModels) -> None:
    settings = replace(TEXT, metric="cross_attention", steps=24)
    found = optimise_offsets(models, concepts_of(models.tokenizer, *EDITS), settings)
    assert all(target.converged for target in found)


def test_a_person_s_own_pictures_teach_without_a_destination(models: EmcidModels, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a/b".replace("/", "_"), "PNG")
    edit = ConceptEdit(source="qv", kind="rectify", images=(tmp_path / "a_b",))
    settings = replace(BOTH, steps=24, patience=None)
    (target,) = optimise_offsets(models, concepts_of(models.tokenizer, edit), settings)
    assert target.finite
    assert target.converged


def test_pictures_enter_the_key_by_what_is_in_them(models: EmcidModels, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for colour, name in (("red", "one.png"), ("red", "two.png"), ("blue", "one.png")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
        edit = replace(CAT, images=(tmp_path / name,))
        optimise_offsets(models, concepts_of(models.tokenizer, edit), BOTH, store=store)
    assert len(list((tmp_path / "store").glob("*/*/done.json"))) == 2


def test_text_alone_needs_no_u_net(models: EmcidModels) -> None:
    bare = EmcidModels(tokenizer=models.tokenizer, text_encoder=models.text_encoder)
    concepts = concepts_of(models.tokenizer, CAT)
    assert same(optimise_offsets(bare, concepts, TEXT), optimise_offsets(models, concepts, TEXT))


def test_all_missing_parts_are_told_at_once(models: EmcidModels) -> None:
    bare = EmcidModels(tokenizer=models.tokenizer, text_encoder=models.text_encoder)
    with pytest.raises(MethodError, match="^4 faults") as caught:
        optimise_offsets(bare, concepts_of(models.tokenizer, CAT), replace(BOTH, images="given"))
    assert "the edit has no pictures" in str(caught.value)


def test_text_alone_cannot_learn_from_pictures(models: EmcidModels, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    edit = ConceptEdit(source="cat", images=(tmp_path / "black.png",))
    with pytest.raises(MethodError, match="does not look at any"):
        optimise_offsets(models, concepts_of(models.tokenizer, edit), TEXT)
    with pytest.raises(MethodError, match="or leave them out"):
        optimise_offsets(models, concepts_of(models.tokenizer, replace(edit, destination="dog")), TEXT)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_is_split(
    models: EmcidModels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    sizes: list[int] = []

    def small(found: Any, concepts: Any, *more: Any) -> Any:
        sizes.append(len(concepts))
        if len(concepts) > 1:
            raise error
        return problem_of(found, concepts, *more)

    concepts = concepts_of(models.tokenizer, CAT, PIZZA)
    expected = optimise_offsets(models, concepts, replace(TEXT, batch=1))
    monkeypatch.setattr(offsets, "problem_of", small)
    assert same(optimise_offsets(models, concepts, TEXT), expected)
    assert sizes == [2, 1, 1]
    assert "went on with halves" in caplog.text


def test_one_concept_that_does_not_fit_is_an_error(
    models: EmcidModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(offsets, "problem_of", full)
    with pytest.raises(MethodError, match="alone does not fit"):
        optimise_offsets(models, concepts_of(models.tokenizer, CAT), TEXT)


@pytest.mark.parametrize(
    ("change", "kind", "severity"),
    [
        ({"finite": False}, "not-finite", "fault"),
        ({"last_loss": 2.0}, "not-converged", "warning"),
        ({"clamped": True, "settled": False}, "clamped", "warning"),
        ({"clamped": True, "settled": True}, "clamped", "info"),
    ],
)
def test_a_descent_that_went_wrong_is_told(
    models: EmcidModels, change: dict[str, Any], kind: str, severity: str
) -> None:
    (target,) = optimise_offsets(models, concepts_of(models.tokenizer, CAT), TEXT)
    sound = replace(target, first_loss=1.0, last_loss=0.5, clamped=False, finite=True)
    assert findings_of([sound]) == []
    (finding,) = findings_of([replace(sound, **change)])
    assert (finding.kind, finding.severity, finding.subject) == (kind, severity, "cat → 'dog'")
