"""Stage I: batched, cached and cut short, against one concept at a time with full passes and hooks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.anatomy import frozen
from surgery.methods.emcid import PUBLISHED, ConceptEdit, EmcidModels, OffsetSettings, optimise_offsets
from surgery.methods.emcid.metric import cross_attention_metric
from surgery.methods.emcid.problem import problem_of
from surgery.methods.emcid.settings import Mode
from tests.parity.plain_emcid import Plain, as_released, plain_offset
from tests.support.concepts import CAT, DOCTOR, FORGET, PIZZA, concepts_of

EDITS = (CAT, PIZZA, DOCTOR, FORGET)


def resolved(models: EmcidModels, *edits: ConceptEdit) -> list[ConceptEdit]:
    return [concept.edit for concept in concepts_of(models.tokenizer, *edits)]


def test_the_published_settings_follow_the_released_algorithm_step_by_step(models: EmcidModels) -> None:
    settings = replace(PUBLISHED["objects"][0], steps=6, sampling_steps=2, batch=4)
    targets = optimise_offsets(models, concepts_of(models.tokenizer, *EDITS), settings, layer=10)
    with frozen(models.text_encoder, models.unet, models.vae):
        for target, edit in zip(targets, resolved(models, *EDITS), strict=True):
            plain = Plain(models, edit, layer=10, context=None)
            expected = plain_offset(plain, as_released(models, plain, settings), steps=6)
            torch.testing.assert_close(target.source, plain.source_vector())
            # Adam turns the sign of a vanishing gradient into a whole step, so compare as vectors
            assert float((target.offset - expected).norm()) < 1e-3 * float(expected.norm())


@pytest.mark.parametrize("layer", [4, 10])
@pytest.mark.parametrize("context", ["full", "concept"])
def test_losses_are_the_plain_ones_at_any_offset(models: EmcidModels, layer: int, context: Any) -> None:
    settings = replace(
        PUBLISHED["objects"][0], context=context, sampling_steps=2, norm_penalty=0.0, text_weight=0.3
    )
    concepts = concepts_of(models.tokenizer, *EDITS)
    generator = torch.Generator().manual_seed(1)
    with frozen(models.text_encoder, models.unet, models.vae):
        problem = problem_of(models, concepts, settings, layer)
        offsets = torch.randn(problem.source.shape, generator=generator)
        found = problem.losses(0, offsets, torch.arange(4))
        for row, edit in enumerate(resolved(models, *EDITS)):
            plain = Plain(models, edit, layer, None if context == "concept" else 77)
            question = as_released(models, plain, settings)()
            torch.testing.assert_close(found[row], plain.losses(offsets[row], question, 0.3))


def test_the_text_loss_alone_is_the_plain_one(models: EmcidModels) -> None:
    settings = OffsetSettings(mode="text", norm_penalty=0.0)
    concepts = concepts_of(models.tokenizer, *EDITS)
    problem = problem_of(models, concepts, settings, 10)
    offsets = torch.randn(problem.source.shape, generator=torch.Generator().manual_seed(1))
    found = problem.losses(0, offsets, torch.arange(4))
    for row, edit in enumerate(resolved(models, *EDITS)):
        for context in (None, 77):
            expected = Plain(models, edit, 10, context).losses(offsets[row], None, settings.text_weight)
            torch.testing.assert_close(found[row], expected)


def test_the_text_loss_as_cross_attention_reads_it_is_the_plain_one(models: EmcidModels) -> None:
    settings = OffsetSettings(mode="text", metric="cross_attention", norm_penalty=0.0)
    problem = problem_of(models, concepts_of(models.tokenizer, *EDITS), settings, 6)
    offsets = torch.randn(problem.source.shape, generator=torch.Generator().manual_seed(1))
    found = problem.losses(0, offsets, torch.arange(4))
    metric = cross_attention_metric(models.unet, problem.source.shape[1])
    for row, edit in enumerate(resolved(models, *EDITS)):
        expected = Plain(models, edit, 6, 77).token_loss(offsets[row], metric, settings.text_weight)
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("mode", ["text", "noise", "both"])
@pytest.mark.parametrize("patience", [None, 2])
def test_concepts_together_are_concepts_alone(models: EmcidModels, mode: Mode, patience: int | None) -> None:
    settings = OffsetSettings(
        mode=mode, steps=12, bank_size=3, sampling_steps=2, patience=patience, tolerance=0.02
    )
    concepts = concepts_of(models.tokenizer, *EDITS)
    together = optimise_offsets(models, concepts, settings)
    alone = optimise_offsets(models, concepts, replace(settings, batch=1))
    for one, other in zip(together, alone, strict=True):
        assert one.steps == other.steps
        assert float((one.offset - other.offset).norm()) < 0.02 * float(one.offset.norm())


def test_gradients_do_not_cross_between_concepts(models: EmcidModels) -> None:
    settings = OffsetSettings(mode="both", bank_size=2, sampling_steps=2)
    problem = problem_of(models, concepts_of(models.tokenizer, *EDITS), settings, 10)
    offsets = torch.zeros_like(problem.source, requires_grad=True)
    loss = problem.losses(0, offsets, torch.arange(4))[1]
    (gradient,) = torch.autograd.grad(loss, [offsets])
    assert gradient[[0, 2, 3]].abs().max() == 0
    assert gradient[1].abs().max() > 0
