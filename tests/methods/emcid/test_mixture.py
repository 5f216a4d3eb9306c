"""Blends: what Stage I learns of them, and what Stage II is given."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.errors import ConceptError, MethodError
from surgery.methods.emcid import ConceptEdit, CorpusSettings, EmcidModels, OffsetSettings, UpdateSettings
from surgery.methods.emcid.concepts import prepare
from surgery.methods.emcid.door import edit
from surgery.methods.emcid.mixture import mix_targets, mixed, single
from tests.support.concepts import CAT, PIZZA, captions, concepts_of, random_targets

BLEND = ConceptEdit(source="doctor", blend=(("female doctor", 0.25), ("male doctor", 0.75)))
TEXT = OffsetSettings(mode="text", steps=5, keep_unconverged=True)


def test_a_blend_is_learned_as_its_destinations_one_by_one(tokenizer: Any) -> None:
    concepts = concepts_of(tokenizer, CAT, BLEND)
    learned = single(concepts)
    assert [one.label for one in learned] == [
        "cat → 'dog'", "doctor → 'female doctor'", "doctor → 'male doctor'"
    ]  # fmt: skip
    assert {part.spans for part in concepts[1].parts} == {concepts[1].spans}


def test_the_mixed_offset_is_the_weighted_sum(models: EmcidModels) -> None:
    concepts = concepts_of(models.tokenizer, CAT, BLEND)
    targets = random_targets(models.text_encoder, single(concepts))
    cat, doctor = mixed(targets, concepts)
    assert cat is targets[0]
    assert doctor.concept is concepts[1]
    torch.testing.assert_close(doctor.offset, 0.25 * targets[1].offset + 0.75 * targets[2].offset)


def test_a_blend_is_as_bad_as_its_worst_part(models: EmcidModels) -> None:
    concepts = concepts_of(models.tokenizer, BLEND)
    good, other = random_targets(models.text_encoder, single(concepts))
    broken = replace(other, finite=False, clamped=True, last_loss=2.0, steps=7)
    target = mix_targets([good, broken], (0.5, 0.5), concepts[0])
    assert (target.finite, target.clamped, target.converged, target.steps) == (False, True, False, 7)


def test_weights_must_fit_the_targets(models: EmcidModels) -> None:
    concepts = concepts_of(models.tokenizer, BLEND)
    targets = random_targets(models.text_encoder, single(concepts))
    with pytest.raises(MethodError, match="2 targets and 1 weights"):
        mix_targets(targets, (1.0,), concepts[0])


def test_a_blend_of_one_weight_is_the_plain_edit(models: EmcidModels) -> None:
    given: Any = {
        "offsets": TEXT,
        "update": UpdateSettings(ridge=1.0),
        "captions": captions(),
        "corpus": CorpusSettings(shrinkage=0.1, include_padding=False, include_sources=True),
    }
    whole = ConceptEdit(source="doctor", blend=(("female doctor", 1.0), ("male doctor", 0.0)))
    plain = ConceptEdit(source="doctor", destination="female doctor")
    one = edit(models, [CAT, whole], **given).delta
    other = edit(models, [CAT, plain], **given).delta
    for name in other.terms:
        torch.testing.assert_close(one.materialise(name), other.materialise(name), rtol=1e-4, atol=1e-6)


def test_blends_of_one_source_are_a_conflict_and_equal_ones_are_merged(tokenizer: Any) -> None:
    concepts, findings = prepare([BLEND, replace(BLEND, weight=2.0)], tokenizer)
    assert len(concepts) == 1
    assert {finding.kind for finding in findings} == {"duplicate"}
    other = replace(BLEND, blend=(("female doctor", 0.5), ("male doctor", 0.5)))
    with pytest.raises(ConceptError, match="one source is edited in several ways"):
        prepare([BLEND, other, PIZZA], tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"destination": "cat"}, "several destinations and another one"),
        ({"blend": (("doctor", 0.5), ("male doctor", 0.5))}, "'doctor' says no more than the source"),
        ({"blend": (("female doctor", 0.5), ("male doctor", 0.6))}, "add up to 1.1; expected 1"),
        ({"blend": (("female doctor", float("nan")), ("male doctor", 0.6))}, "add up to nan; expected 1"),
    ],
)
def test_a_faulty_blend_is_refused(tokenizer: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConceptError, match=message):
        prepare([replace(BLEND, **changes)], tokenizer)
