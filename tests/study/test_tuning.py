"""Mixtures tuned on the tiny pipeline by judges whose answers are known; pictures are drawn and counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.diffusion import noting_halvings, sample
from surgery.errors import JudgeError
from surgery.evaluate import debias_dict, debias_text
from surgery.execute import compute_patch, plan_recipe
from surgery.judge import Labels, Verdicts
from surgery.methods.emcid.tuning import Round
from surgery.recipe import Recipe, parse_recipe
from surgery.store import Store
from surgery.study.balance import measure_debiased
from surgery.study.tuning import _Course, check_groups, tune_recipe
from surgery.study.words import Words
from tests.support.recipes import emcid_of
from tests.support.small import small_pipeline

RECIPE = """surgery: 1
base: {base}
edits:
  - emcid:
      kind: debias
      concepts:
        - {{source: doctor, shares: {{gender: [woman, man]}}}}
        - {{source: cat, shares: {{gender: [woman, man], skin: [light, dark]}}}}
      debias:
        phrases: {{woman: "female {{}}", man: "male {{}}"}}
        keep_explicit: false
        pictures: 4
        tolerance: 0.45
        interval: 0.4
        rounds: 3
        steps: 1
        guidance: 1
      offsets: {{mode: text, steps: 2, keep_unconverged: true}}
      update: {{layers: [9, 10]}}
      corpus: {{captions: captions.txt}}
sample: {{steps: 1, guidance: 1}}
evaluate: {{samples: 1, group_samples: 2}}
"""
LABELS = Labels(concept=("cat", "doctor"), gender=("woman", "man"), skin=("light", "dark"))
WORDS = Words(train_templates=("a photo of {}", "the {}"), test_templates=("an image of {}",))
Rule = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class Ruled:
    """A judge whose groups follow a rule of the sum of a picture's bytes; it counts what it is shown."""

    name = "ruled"
    labels = LABELS
    accuracy = {"gender": 1.0}  # noqa: RUF012 - a stand-in, never changed

    def __init__(self, woman: Rule) -> None:
        self.woman, self.seen = woman, 0

    def score(self, pictures: np.ndarray[Any, Any]) -> Verdicts:
        self.seen += len(pictures)
        sums = pictures.reshape(len(pictures), -1).astype(int).sum(axis=1)
        woman = self.woman(sums).astype(np.float32)
        light = (sums % 3 == 0).astype(np.float32)
        none = np.zeros((len(sums), 0), np.float32)
        return Verdicts(
            labels=LABELS,
            concept=np.ones((len(sums), 2), np.float32),
            style=none,
            background=none,
            gender=np.stack([woman, 1 - woman], axis=1),
            skin=np.stack([light, 1 - light], axis=1),
        )


def always_a_man(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.zeros(len(sums))


def half(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.arange(len(sums)) % 2


@pytest.fixture(scope="module")
def models(tiny_pipeline: Path) -> Any:
    return small_pipeline(tiny_pipeline)


@pytest.fixture
def recipe(tmp_path: Path, tiny_pipeline: Path) -> Recipe:
    (tmp_path / "captions.txt").write_text("a photo of a cat\na picture of the dog\n" * 20)
    return parse_recipe(RECIPE.format(base=tiny_pipeline), path=tmp_path / "recipe.yaml")


def only_doctor(recipe: Recipe) -> Recipe:
    concepts = "[{source: doctor, shares: {gender: [woman, man]}}]"
    changes = {"edits[0].emcid.concepts": concepts, "edits[0].emcid.debias.pictures": "1"}
    return parse_recipe(recipe.source, path=recipe.path, overrides=changes)


def test_a_share_that_is_right_at_once_ends_after_one_round_and_is_not_drawn_again(
    recipe: Recipe, models: Any, tmp_path: Path, tiny_pipeline: Path
) -> None:
    base, store, judge = open_checkpoint(tiny_pipeline), Store(tmp_path / "store"), Ruled(half)
    first = tune_recipe(only_doctor(recipe), base, WORDS, models, judge, store)
    [record] = first.record
    assert isinstance(record, dict)
    doctor = record["concepts"]["doctor"]
    assert doctor["done"] is True
    assert doctor["mixture"] == [0.5, 0.5]
    assert len(doctor["rounds"]) == 1
    assert [finding.kind for finding in first.findings] == ["more-pictures"]
    drawn = judge.seen
    assert drawn == sum(doctor["rounds"][0]["counts"])
    assert tune_recipe(only_doctor(recipe), base, WORDS, models, judge, store) == first
    assert judge.seen == drawn


def test_counts_of_halved_batches_are_kept_under_their_own_key(
    recipe: Recipe,
    models: Any,
    tmp_path: Path,
    tiny_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, store, judge = open_checkpoint(tiny_pipeline), Store(tmp_path / "store"), Ruled(half)
    sizes = []

    def limited(*given: Any, batch: int, **knobs: Any) -> Any:
        sizes.append(batch)
        if batch > 1:
            raise torch.OutOfMemoryError("out of memory")
        return sample(*given, batch=batch, **knobs)

    monkeypatch.setattr("surgery.evaluate.pictures.sample", limited)
    with noting_halvings() as first:
        tune_recipe(recipe, base, WORDS, models, judge, store)
    assert min(sizes) == 1 < max(sizes)
    seen = judge.seen
    with noting_halvings() as again:
        tune_recipe(recipe, base, WORDS, models, judge, store)
    assert judge.seen == seen
    assert [one.kind for one in first] == [one.kind for one in again]
    assert {one.kind for one in first} == {"out-of-memory"}


def test_what_settled_before_the_others_moved_is_drawn_again() -> None:
    doctor, cat = (1.0, 0.0), (0.25, 0.25, 0.25, 0.25)
    course = _Course(goals={"doctor": (), "cat": ()}, weights={"doctor": doctor, "cat": cat})
    for source, weights in (("doctor", doctor), ("cat", cat)):
        course.saw(source, Round(weights=weights, counts=(1,)))
    course.settled |= {"doctor", "cat"}
    assert course.moved == []
    course.weights["cat"] = (1.0, 0.0, 0.0, 0.0)
    course.saw("cat", Round(weights=course.weights["cat"], counts=(2,)))
    assert course.moved == ["doctor"]
    course.saw("doctor", Round(weights=doctor, counts=(3,)))
    assert course.moved == []
    # the same mixture among others: its first round no longer holds
    assert [seen.counts for seen in course.rounds["doctor"]] == [(3,)]
    assert [seen.counts for seen in course.rounds["cat"]] == [(1,), (2,)]


def test_what_cannot_be_reached_keeps_its_best_mixture_and_is_named(
    recipe: Recipe, models: Any, tmp_path: Path, tiny_pipeline: Path
) -> None:
    tuned = tune_recipe(
        recipe, open_checkpoint(tiny_pipeline), WORDS, models, Ruled(always_a_man), Store(tmp_path / "store")
    )
    warned = {finding.subject: finding for finding in tuned.findings if finding.kind == "not-balanced"}
    assert "doctor" in warned
    assert "0 % woman, 100 % man" in warned["doctor"].message
    [concept, other] = emcid_of(tuned.recipe).concepts
    assert concept.mixture is not None
    assert sum(mixed.weight for mixed in concept.mixture) == pytest.approx(1)
    assert other.mixture is not None
    assert len(other.mixture) == 4


def test_the_tuned_patch_remembers_the_recipe_as_it_was_written_and_is_measured_by_group(
    recipe: Recipe, models: Any, tmp_path: Path, tiny_pipeline: Path
) -> None:
    base, store, judge = open_checkpoint(tiny_pipeline), Store(tmp_path / "store"), Ruled(half)
    tuned = tune_recipe(recipe, base, WORDS, models, judge, store)
    plan = plan_recipe(recipe, base)
    computed = compute_patch(recipe, plan, base, models, store, tuned=tuned.recipe)
    assert computed.patch.provenance["recipe_digest"] == recipe.digest
    doctor = computed.outcomes[0].replacements[0]
    assert doctor.label == "doctor → 50 % woman / 50 % man"
    effect = measure_debiased(recipe, computed.outcomes, WORDS, models, computed.patch, judge, store, batch=4)
    assert effect is not None
    assert [balance.subject for balance in effect.balances] == ["a doctor", "a cat"]
    # the rule gives every second picture to either
    assert effect.balances[0].deviation_after == 0
    assert effect.balances[0].groups[0].recognised_after == 1.0
    assert effect.score("explicit_before") is not None
    assert json.loads(json.dumps(debias_dict(effect)))["phrases"][0]["subject"] == "a doctor"
    assert "a doctor" in debias_text(effect)


def test_shares_that_the_judge_cannot_tell_are_refused_all_at_once(recipe: Recipe) -> None:
    concepts = "[{source: doctor, shares: {age: [old, young], gender: [woman, elf]}}]"
    asked = parse_recipe(recipe.source, path=recipe.path, overrides={"edits[0].emcid.concepts": concepts})
    with pytest.raises(JudgeError) as caught:
        check_groups(asked, Ruled(half))
    assert len(caught.value.faults) == 2
    assert all(fault.startswith("doctor: ") for fault in caught.value.faults)
