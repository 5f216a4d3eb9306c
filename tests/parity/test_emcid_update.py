"""Stage II: one walk, cut prompts, Cholesky and Woodbury against full passes per layer and LU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.anatomy import Span, locate, reading
from surgery.methods.emcid import (
    OBJECT_TEMPLATES,
    ConceptEdit,
    CorpusSettings,
    Target,
    UpdateSettings,
    collect_statistics,
    solve_updates,
)
from tests.parity.plain_emcid import plain_update, prompt_values
from tests.support.concepts import CAT, DOCTOR, PIZZA, captions, concepts_of, random_targets

LAYERS = (0, 3, 7, 10)
PLAIN = UpdateSettings(layers=LAYERS, ridge=100.0, keys="mean")


def wanted_of(
    encoder: Any, tokenizer: Any, edits: Sequence[ConceptEdit], targets: Sequence[Target], anchor: str
) -> list[torch.Tensor]:
    """v* of each concept's prompts: its own stream, or that of the first prompt, plus the offset."""
    streams = prompt_values(encoder, tokenizer, edits, encoder.encoder.layers[LAYERS[-1]], reading)
    if anchor == "first":
        streams = [target.source.expand_as(one) for target, one in zip(targets, streams, strict=True)]
    return [one + target.offset for target, one in zip(targets, streams, strict=True)]


def assert_plain(
    encoder: Any,
    tokenizer: Any,
    settings: UpdateSettings,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    preserve: tuple[str, ...] = (),
) -> None:
    chosen = [
        replace(edit, weight=weight) for edit, weight in zip((CAT, PIZZA, DOCTOR), weights, strict=True)
    ]
    concepts = concepts_of(tokenizer, *chosen)
    targets = random_targets(encoder, concepts)
    # few captions leave C singular; shrunk, both ways solve the same well-posed system
    statistics = collect_statistics(encoder, tokenizer, captions(), LAYERS, CorpusSettings(shrinkage=0.1))
    kept: list[Span] = [
        locate(tokenizer, template, name) for name in preserve for template in OBJECT_TEMPLATES
    ]
    update = solve_updates(encoder, targets, statistics, settings, preserve=kept)
    edits = [concept.edit for concept in concepts]
    wanted = wanted_of(encoder, tokenizer, edits, targets, settings.anchor)
    moments = {layer: statistics.moment(layer) for layer in LAYERS}
    expected = plain_update(encoder, tokenizer, edits, wanted, moments, settings, preserve)
    for report, change in zip(update.layers, expected.values(), strict=True):
        found = update.delta.materialise(report.name)
        assert float((found - change).norm()) <= 1e-5 * float(change.norm()), report


@pytest.mark.parametrize("residual", ["mlp", "block"])
@pytest.mark.parametrize(("alpha", "ridge"), [(0.5, 100.0), (0.6, 4000.0)])
@pytest.mark.parametrize("anchor", ["first", "mean"])
def test_update_is_the_plain_layer_by_layer_formula(
    encoder: Any, tokenizer: Any, residual: Any, alpha: float, ridge: float, anchor: Any
) -> None:
    settings = replace(PLAIN, residual=residual, alpha=alpha, ridge=ridge, anchor=anchor)
    assert_plain(encoder, tokenizer, settings)


@pytest.mark.parametrize("sweeps", [1, 3])
def test_a_key_for_each_prompt_is_the_plain_formula(encoder: Any, tokenizer: Any, sweeps: int) -> None:
    assert_plain(encoder, tokenizer, replace(PLAIN, keys="all", sweeps=sweeps))


@pytest.mark.parametrize("keys", ["mean", "all"])
def test_weights_of_edits_are_the_plain_formula(encoder: Any, tokenizer: Any, keys: Any) -> None:
    assert_plain(encoder, tokenizer, replace(PLAIN, keys=keys), weights=(0.2, 1.0, 7.0))


def test_preserved_names_are_the_plain_formula(encoder: Any, tokenizer: Any) -> None:
    settings = replace(PLAIN, keys="all", sweeps=2, preserve_weight=3.0)
    assert_plain(encoder, tokenizer, settings, preserve=("dog", "fish"))


def test_the_null_space_is_the_plain_formula(encoder: Any, tokenizer: Any) -> None:
    assert_plain(encoder, tokenizer, replace(PLAIN, keys="all", null_space_threshold=0.5))
