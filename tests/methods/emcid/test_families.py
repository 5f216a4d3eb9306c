"""EMCID on SD 2.x and SDXL: layers, losses and updates against the libraries' own passes."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy import fill, frozen, reading, reading_inputs, replacing, text_stack
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import size_conditions
from surgery.errors import MethodError
from surgery.methods.emcid import (
    CorpusSettings,
    EmcidModels,
    OffsetSettings,
    UpdateSettings,
    collect_statistics,
    edit,
    optimise_offsets,
)
from surgery.methods.emcid.layers import default_layers
from surgery.methods.emcid.metric import cross_attention_metric
from surgery.methods.emcid.problem import problem_of
from surgery.methods.emcid.recipe import _models, settings_of
from surgery.recipe import parse_recipe
from tests.support.concepts import CAT, PIZZA, captions, concepts_of
from tests.support.recipes import emcid_of

LAYERS, LAYERS_2 = (8, 9, 10), (3, 4, 5)
UPDATE = UpdateSettings(layers=LAYERS, layers_2=LAYERS_2, ridge=1.0)
CORPUS = CorpusSettings(shrinkage=0.1, include_padding=False)


@pytest.fixture(scope="module")
def xl(tiny_xl: Path) -> EmcidModels:
    return _models(load_pipeline(tiny_xl))


def tokens(tokenizer: Any, prompt: str) -> Tensor:
    ids: Tensor = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return ids


def plain_reading(models: EmcidModels, prompt: str, place: int, offsets: list[Tensor]) -> tuple[Tensor, ...]:
    """Features, both pooled ones, by the library's own passes, with the offsets added by hooks."""
    found, features = [], []
    for tower, layer, offset in zip(models.towers, (10, 5), offsets, strict=True):

        def insert(stream: Tensor, offset: Tensor = offset) -> Tensor:
            stream = stream.clone()
            stream[0, place] += offset
            return stream

        blocks = text_stack(tower.encoder).blocks
        # a library's own hidden_states may be recorded before the hook
        with replacing(blocks[layer], insert), reading({"used": blocks[-2]}) as seen:
            found.append(tower.encoder(tokens(tower.tokenizer, prompt)))
        features.append(seen["used"])
    return torch.cat(features, -1), found[0].pooler_output, found[1].text_embeds


def plain_text_losses(models: EmcidModels, offsets: Tensor) -> tuple[list[Tensor], list[tuple[Any, Any]]]:
    """For each prompt of CAT the mean of both pooled losses, and the readings of source and destination."""
    (concept,) = concepts_of(models.tokenizer, CAT)
    nothing = [torch.zeros(32), torch.zeros(40)]
    losses, readings = [], []
    for template, span in zip(concept.edit.templates, concept.spans, strict=True):
        given = plain_reading(models, fill(template, "cat"), span.last, list(offsets.split([32, 40])))
        wanted = plain_reading(models, fill(template, "dog"), span.last, nothing)
        pairs = zip(given[1:], wanted[1:], strict=True)
        losses.append(sum((a - b).square().mean() for a, b in pairs) / 2)
        readings.append((given, wanted))
    return losses, readings  # type: ignore[return-value]


@pytest.fixture
def offsets() -> Tensor:
    return torch.randn(72, generator=torch.Generator().manual_seed(0))


def test_the_text_loss_has_the_pooled_feature_of_both_encoders(xl: EmcidModels, offsets: Tensor) -> None:
    settings = OffsetSettings(mode="text", norm_penalty=0.0)
    with frozen(xl.text_encoder, xl.text_encoder_2):
        problem = problem_of(xl, concepts_of(xl.tokenizer, CAT), settings, 10, 5)
        found = problem.losses(0, offsets[None], torch.tensor([0]))
        expected, _ = plain_text_losses(xl, offsets)
    torch.testing.assert_close(found[0], settings.text_weight * torch.stack(expected).mean())


def test_the_cross_attention_loss_reads_both_side_by_side_and_the_pooled_ones_too(
    xl: EmcidModels, offsets: Tensor
) -> None:
    settings = OffsetSettings(mode="text", metric="cross_attention", norm_penalty=0.0)
    metric = cross_attention_metric(xl.unet, 72)
    with frozen(xl.text_encoder, xl.text_encoder_2):
        problem = problem_of(xl, concepts_of(xl.tokenizer, CAT), settings, 10, 5)
        found = problem.losses(0, offsets[None], torch.tensor([0]))
        pooled, readings = plain_text_losses(xl, offsets)
    (concept,) = concepts_of(xl.tokenizer, CAT)
    expected = []
    for one, (given, wanted), span in zip(pooled, readings, concept.spans, strict=True):
        difference = (given[0] - wanted[0])[0, span.last :]
        distances = ((difference @ metric) * difference).mean(-1)
        expected.append((distances[0] + distances[1:].mean()) / 2 + one)
    torch.testing.assert_close(found[0], settings.text_weight * torch.stack(expected).mean())


def test_the_noise_loss_gives_the_unet_pooled_feature_and_sizes(xl: EmcidModels, offsets: Tensor) -> None:
    settings = OffsetSettings(mode="noise", images="none", norm_penalty=0.0, bank_size=2)
    with frozen(xl.text_encoder, xl.text_encoder_2, xl.unet):
        problem = problem_of(xl, concepts_of(xl.tokenizer, CAT), settings, 10, 5)
        found = problem.losses(0, offsets[None], torch.tensor([0]))
        _, readings = plain_text_losses(xl, offsets)
        assert problem.teacher is not None
        question = problem.teacher.ask(0, torch.arange(3))
        errors = []
        for row, pair in enumerate(readings):
            told = [
                xl.unet(
                    question.noisy[row : row + 1],
                    question.timesteps[row],
                    encoder_hidden_states=features,
                    added_cond_kwargs=size_conditions(pooled, 32, 32),
                ).sample
                for features, _, pooled in pair
            ]
            errors.append((told[0] - told[1]).square().mean())
    torch.testing.assert_close(found[0], torch.stack(errors).mean(), rtol=1e-3, atol=0.0)


def test_each_encoder_has_a_ball_of_its_own_and_a_penalty_of_its_own(xl: EmcidModels) -> None:
    settings = OffsetSettings(mode="text", steps=3, learning_rate=50.0, clamp=0.5, keep_unconverged=True)
    (target,) = optimise_offsets(xl, concepts_of(xl.tokenizer, CAT), settings, layer=10, layer_2=5)
    assert target.second is not None
    for one, width in ((target, 32), (target.second, 40)):
        assert one.offset.shape == (width,)
        assert float(one.offset.norm()) <= 0.5001 * float(one.source.norm())
    free = problem_of(xl, (target.concept,), replace(settings, norm_penalty=0.0), 10, 5)
    held = problem_of(xl, (target.concept,), replace(settings, norm_penalty=2.0), 10, 5)
    both = torch.cat([target.offset, target.second.offset])[None]
    told = [problem.losses(0, both, torch.tensor([0])) for problem in (held, free)]
    expected = sum(2.0 * one.offset.norm() / one.source.norm() ** 2 for one in (target, target.second))
    torch.testing.assert_close((told[0] - told[1])[0], torch.as_tensor(expected), rtol=1e-3, atol=1e-6)


def test_an_edit_changes_both_encoders_each_once_and_carries_both_offsets(xl: EmcidModels) -> None:
    offsets = OffsetSettings(mode="text", steps=20, keep_unconverged=True)
    result = edit(xl, [CAT, PIZZA], offsets, UPDATE, captions(), corpus=CORPUS)
    names = {f"text_encoder/text_model.encoder.layers.{layer}.mlp.fc2.weight" for layer in LAYERS}
    names |= {f"text_encoder_2/text_model.encoder.layers.{layer}.mlp.fc2.weight" for layer in LAYERS_2}
    assert set(result.delta.terms) == names == {report.name for report in result.layers}
    assert [report.label for report in result.edits_2] == ["cat → 'dog'", "pizza → 'fish'"]
    moved = [torch.zeros(32), torch.zeros(40)]
    for number, (tower, layer) in enumerate(zip(xl.towers, (10, 5), strict=True)):
        streams, blocks = [], text_stack(tower.encoder).blocks
        with ExitStack() as undo:
            for edited in (False, True):
                for at in {0: LAYERS, 1: LAYERS_2}[number] if edited else ():
                    weight = blocks[at].mlp.fc2.weight
                    name = f"{tower.component}/text_model.encoder.layers.{at}.mlp.fc2.weight"
                    undo.callback(weight.copy_, weight.clone())
                    weight += result.delta.materialise(name).float()
                with reading({"last": blocks[layer]}) as seen:
                    tower.encoder(tokens(tower.tokenizer, "A photo of cat"))
                streams.append(seen["last"][0, result.targets[0].concept.spans[1].last])
        moved[number] = streams[1] - streams[0]
    first = result.targets[0]
    assert first.second is not None
    for change, wanted in zip(moved, (first.offset, first.second.offset), strict=True):
        assert float((change - wanted).norm()) < 0.5 * float(wanted.norm())


def test_keys_of_the_second_encoder_are_counted_with_its_own_padding(xl: EmcidModels) -> None:
    tower = xl.towers[1]
    found = collect_statistics(
        tower.encoder, tower.tokenizer, captions(), (4,), CorpusSettings(word_weight=1)
    )
    total = torch.zeros(160, 160, dtype=torch.float64)
    for caption in captions():
        with torch.no_grad(), reading_inputs({"keys": text_stack(tower.encoder).blocks[4].mlp.fc2}) as seen:
            tower.encoder(tokens(tower.tokenizer, caption))
        total += seen["keys"][0].double().T @ seen["keys"][0].double()
    torch.testing.assert_close(found.moment(4), total / (60 * 77), rtol=1e-4, atol=1e-6)
    assert tower.tokenizer.pad_token_id != xl.tokenizer.pad_token_id


def test_a_tokenizer_that_splits_prompts_otherwise_is_refused(xl: EmcidModels) -> None:
    class Other:
        is_fast, pad_token_id = True, 0

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            return {"input_ids": [1, 2, 3], "offset_mapping": [(0, 0)] * 3}

    other: Any = Other()
    with pytest.raises(MethodError, match="has other tokens in the tokenizer of text_encoder_2"):
        edit(replace(xl, tokenizer_2=other), [CAT], OffsetSettings(mode="text"), UPDATE, captions())


@pytest.mark.parametrize("given", [None, (6,), (-1,), ()])
def test_layers_of_the_second_encoder_that_cannot_be_are_refused(xl: EmcidModels, given: Any) -> None:
    with pytest.raises(MethodError, match="update.layers_2 is .*ascending blocks from 0 to 5"):
        edit(xl, [CAT], OffsetSettings(mode="text"), replace(UPDATE, layers_2=given), captions())


def test_layers_of_a_second_encoder_are_refused_where_there_is_one(models: EmcidModels) -> None:
    with pytest.raises(MethodError, match="update.layers_2 .* there is one text encoder"):
        edit(models, [CAT], OffsetSettings(mode="text"), UPDATE, captions())


RECIPE = """surgery: 1
base: x
edits: [{emcid: {concepts: [{source: cat, destination: dog}]}}]
"""


def test_families_have_the_layers_of_the_notes(tiny_pipeline: Path, tiny_v2: Path, tiny_xl: Path) -> None:
    entry = emcid_of(parse_recipe(RECIPE))
    found = {}
    for base in (tiny_pipeline, tiny_v2, tiny_xl):
        checkpoint = open_checkpoint(base)
        offsets, update = settings_of(entry, checkpoint)
        found[checkpoint.architecture] = (update.layers, update.layers_2, offsets.clamp)
    assert found == {
        "stable-diffusion-v1": (tuple(range(11)), None, 1.5),
        "stable-diffusion-v2": (tuple(range(22)), None, 1.5),
        "stable-diffusion-xl-v1-base": ((8, 9, 10), (1, 2, 3, 4, 5), 1.2),
    }
    # of the real one, whose second encoder has 32 blocks
    names = {f"text_encoder_2/text_model.encoder.layers.{layer}.mlp.fc2.weight": None for layer in range(32)}
    real: Any = replace(open_checkpoint(tiny_xl), tensors=names)  # type: ignore[arg-type]
    assert default_layers(real, "text_encoder_2") == (26, 27, 28, 29, 30)
