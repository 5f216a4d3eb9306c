"""What weights mean to concepts that must stay: shares of each one's measure, and runs that were stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.methods.cad import retained as room
from surgery.methods.cad.attribution import attribute
from surgery.methods.cad.gradients import Grading
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.retained import Kind, Retained
from surgery.methods.cad.stored import Shelf
from surgery.store import Store
from tests.methods.cad.conftest import CAT, NAMES, QUICK

BIRD = CadConcept(name="bird", prompts=("a photo of a fish",), seed=5)


def retained(models: Any, store: Store | None) -> Retained:
    grading = Grading(names=NAMES)
    return Retained(
        models=models,
        concepts=[CAT, BIRD],
        attribution=QUICK,
        grading=grading,
        shelf=Shelf(store, models, grading, 8),
        store=store,
    )


def test_scores_are_the_mean_size_as_shares_of_each_measure(models: Any) -> None:
    found = retained(models, None).mean("scores")
    expected = dict.fromkeys(NAMES, torch.zeros(()))
    for concept in (CAT, BIRD):
        (pairs,) = pairs_of(models, [concept], QUICK, batch=8)
        plain = attribute(models, pairs, Grading(names=NAMES))
        for name, score in plain.scores():
            expected[name] = expected[name] + score.abs() / plain.measured.mean / 2
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("kind", ["scores", "damage"])
def test_a_stopped_run_goes_on_with_the_next_concept(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    whole = retained(models, None).mean(kind)
    real, seen = Retained._of, []

    def stopping(self: Retained, kind: Kind, concept: CadConcept) -> Iterator[tuple[str, torch.Tensor]]:
        seen.append(concept.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, kind, concept)

    monkeypatch.setattr(room.Retained, "_of", stopping)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        retained(models, store).mean(kind)
    found = retained(models, store).mean(kind)
    assert seen == ["cat", "bird", "bird"]
    for name in NAMES:
        torch.testing.assert_close(found[name], whole[name], rtol=0, atol=0)
    assert retained(models, store).mean(kind).keys() == whole.keys()
    assert len(seen) == 3
