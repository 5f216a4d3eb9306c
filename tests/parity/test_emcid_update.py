"""Stage II: one walk, cut prompts, Cholesky and Woodbury against full passes per layer and LU."""

from typing import Any

import pytest
import torch

from surgery.anatomy import reading
from surgery.methods.emcid import CorpusSettings, UpdateSettings, collect_statistics, solve_updates
from tests.parity.plain_emcid import concept_means, plain_update
from tests.support.concepts import CAT, DOCTOR, PIZZA, captions, concepts_of, random_targets

LAYERS = (0, 3, 7, 10)


@pytest.mark.parametrize("residual", ["mlp", "block"])
@pytest.mark.parametrize(("alpha", "ridge"), [(0.5, 100.0), (0.6, 4000.0)])
@pytest.mark.parametrize("anchor", ["first", "mean"])
def test_update_is_the_plain_layer_by_layer_formula(
    encoder: Any, tokenizer: Any, residual: Any, alpha: float, ridge: float, anchor: Any
) -> None:
    concepts = concepts_of(tokenizer, CAT, PIZZA, DOCTOR)
    targets = random_targets(encoder, concepts)
    # few captions leave C singular; shrunk, both ways solve the same well-posed system
    statistics = collect_statistics(encoder, tokenizer, captions(), LAYERS, CorpusSettings(shrinkage=0.1))
    settings = UpdateSettings(
        layers=LAYERS, residual=residual, alpha=alpha, ridge=ridge, anchor=anchor, keys="mean"
    )
    update = solve_updates(encoder, targets, statistics, settings)
    edits = [concept.edit for concept in concepts]
    offsets = torch.stack([target.offset for target in targets])
    anchors = torch.stack([target.source for target in targets])
    if anchor == "mean":
        anchors = concept_means(encoder, tokenizer, edits, encoder.encoder.layers[LAYERS[-1]], reading)
    moments = {layer: statistics.moment(layer) for layer in LAYERS}
    expected = plain_update(
        encoder, tokenizer, edits, anchors + offsets, moments, ridge=ridge, alpha=alpha, residual=residual
    )
    for report, change in zip(update.layers, expected.values(), strict=True):
        found = update.delta.materialise(report.name)
        assert float((found - change).norm()) <= 1e-5 * float(change.norm()), report
