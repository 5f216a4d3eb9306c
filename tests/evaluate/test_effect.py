from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.diffusion import sample
from surgery.errors import JudgeError
from surgery.evaluate import Cache, Change, Probe, Sampling, as_dict, as_text, measure_edit
from surgery.evaluate.pictures import own_seed
from surgery.judge import Labels, Trait, Verdicts
from surgery.store import Store
from tests.support.threads import threads

Edit = Callable[[], AbstractContextManager[Any]]

LABELS = Labels(concept=("cat", "dog", "pizza"))
CAT, DOG, PIZZA = Trait("cat"), Trait("dog"), Trait("pizza")
SAMPLING = Sampling(templates=("a photo of {}", "the {}"), samples=3, steps=1, guidance=2.0, seed=7)
CHANGES = [
    Change(subject="cat", old=CAT, new=PIZZA, destination="pizza"),
    Change(subject="fish", old=DOG, templates=("a picture of a {}",)),
]
HELD_OUT = [Probe(subject="dog", shows=DOG), Probe(subject="pizza", shows=PIZZA)]


class SumJudge:
    """Sees a concept by what the sum of a picture's bytes can be divided by: plain to recompute."""

    name = "sums"
    labels = LABELS
    accuracy = {"concept": 1.0}  # noqa: RUF012 - a stand-in, never changed

    def __init__(self) -> None:
        self.seen = 0
        self.stop_after = 10**9

    def score(self, pictures: np.ndarray[Any, Any]) -> Verdicts:
        self.seen += 1
        if self.seen > self.stop_after:
            raise KeyboardInterrupt
        sums = pictures.reshape(len(pictures), -1).astype(int).sum(axis=1)
        concept = np.stack([sums % 2 == 0, sums % 3 == 0, sums % 5 != 0], axis=1).astype(np.float32)
        none = np.zeros((len(pictures), 0), np.float32)
        return Verdicts(labels=LABELS, concept=concept, style=none, background=none, gender=none, skin=none)


def shown(pipeline: Any, phrase: str, templates: tuple[str, ...], trait: Trait) -> list[bool]:
    """The oracle: a phrase's pictures with the seeds they are to have, drawn and judged without the room."""
    prompts = [template.replace("{}", phrase) for template in templates for _ in range(3)]
    seeds = [own_seed(7, prompt, number % 3) for number, prompt in enumerate(prompts)]
    hits: list[bool] = (
        SumJudge().score(sample(pipeline, prompts, seeds, steps=1, guidance=2.0)).shows(trait).tolist()
    )
    return hits


@contextmanager
def counted(pipeline: Any) -> Iterator[list[int]]:
    """How many pictures the VAE decodes."""
    drawn: list[int] = []
    hook = pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: drawn.append(len(args[0])))
    try:
        yield drawn
    finally:
        hook.remove()


@pytest.fixture
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def test_several_phrases_at_once_show_what_one_at_a_time_show(
    pipeline: Any, edited: Edit, one_thread: None
) -> None:
    alone = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING)
    torch.set_num_threads(3)
    assert measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING) == alone


def test_shares_are_those_of_pictures_judged_one_by_one(
    pipeline: Any, edited: Edit, one_thread: None
) -> None:
    effect = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING)
    common, own = SAMPLING.templates, CHANGES[1].templates
    old_before = shown(pipeline, "cat", common, CAT) + shown(pipeline, "fish", own, DOG)
    destination = shown(pipeline, "pizza", common, PIZZA)
    held_before = shown(pipeline, "dog", common, DOG) + destination
    with edited():
        old_after = shown(pipeline, "cat", common, CAT) + shown(pipeline, "fish", own, DOG)
        new_after = shown(pipeline, "cat", common, PIZZA)
        held_after = shown(pipeline, "dog", common, DOG) + shown(pipeline, "pizza", common, PIZZA)
    expected = {
        "old_before": np.mean(old_before),
        "old_after": np.mean(old_after),
        "new_before": np.mean(shown(pipeline, "cat", common, PIZZA)),
        "new_after": np.mean(new_after),
        "destination": np.mean(destination),
        "reached": np.mean(new_after) / np.mean(destination),
        "forgotten": 1 - np.mean(old_after) / np.mean(old_before),
        "held_out_before": np.mean(held_before),
        "held_out_after": np.mean(held_after),
        "held_out_change": np.mean(held_after) - np.mean(held_before),
    }
    assert {score.name: score.value for score in effect.scores} == pytest.approx(expected)
    assert {score.name: score.count for score in effect.scores} == {
        "old_before": 9,
        "old_after": 9,
        "new_before": 6,
        "new_after": 6,
        "destination": 6,
        "reached": 6,
        "forgotten": 9,
        "held_out_before": 12,
        "held_out_after": 12,
        "held_out_change": 12,
    }
    assert effect.changes[1].old_before == pytest.approx(np.mean(old_before[6:]))
    assert effect.changes[1].new_after is None
    assert effect.held_out[0].after == pytest.approx(np.mean(held_after[:6]))


def test_no_edit_changes_nothing(pipeline: Any) -> None:
    effect = measure_edit(pipeline, nullcontext(pipeline), CHANGES, HELD_OUT, SumJudge(), SAMPLING)
    change = effect.score("held_out_change")
    assert change is not None
    assert change.value == 0
    assert [row.old_before for row in effect.changes] == [row.old_after for row in effect.changes]


def test_a_change_without_partner_phrases_has_no_scores_for_them(pipeline: Any) -> None:
    effect = measure_edit(pipeline, nullcontext(pipeline), CHANGES[1:], [], SumJudge(), SAMPLING)
    assert [score.name for score in effect.scores] == ["old_before", "old_after", "forgotten"]
    assert effect.score("reached") is None


def test_pictures_are_kept_and_shared_between_edits(pipeline: Any, edited: Edit, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cache = Cache(store=store, before="base", after="patch 1")
    with counted(pipeline) as drawn:
        first = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING, cache=cache)
    # cat, fish, dog, pizza before and after; the destination is a held-out phrase too
    assert sum(drawn) == 2 * (6 + 3 + 6 + 6)
    with counted(pipeline) as drawn:
        again = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING, cache=cache)
    assert drawn == []
    assert again == first
    other = Cache(store=store, before="base", after="patch 2")
    with counted(pipeline) as drawn:
        measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING, cache=other)
    assert sum(drawn) == 6 + 3 + 6 + 6


def test_stored_pictures_are_not_taken_for_those_of_another_scheduler(pipeline: Any, tmp_path: Path) -> None:
    cache = Cache(store=Store(tmp_path), before="base", after="base")
    measure_edit(pipeline, nullcontext(pipeline), CHANGES[:1], [], SumJudge(), SAMPLING, cache=cache)
    kept = pipeline.scheduler
    try:
        pipeline.scheduler = type(kept).from_config(kept.config, beta_end=0.02)
        with counted(pipeline) as drawn:
            measure_edit(pipeline, nullcontext(pipeline), CHANGES[:1], [], SumJudge(), SAMPLING, cache=cache)
    finally:
        pipeline.scheduler = kept
    assert drawn != []


def test_a_batch_that_does_not_fit_is_stored_as_what_was_drawn(
    pipeline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, one_thread: None
) -> None:
    cache = Cache(store=Store(tmp_path), before="base", after="base")

    def measured(batch: int) -> Any:
        sampling = replace(SAMPLING, batch=batch)
        return measure_edit(
            pipeline, nullcontext(pipeline), CHANGES[:1], [], SumJudge(), sampling, cache=cache
        )

    def crowded(unet: Any, args: Any) -> None:
        if len(args[0]) > 4:  # two pictures, with and without the prompt
            raise torch.OutOfMemoryError

    hook = pipeline.unet.register_forward_pre_hook(crowded)
    try:
        measured(4)
    finally:
        hook.remove()
    assert "went on with halves" in caplog.text
    with counted(pipeline) as drawn:
        measured(2)
        assert drawn == []
        measured(4)
        assert sum(drawn) == 6 + 6


def test_a_stopped_measurement_goes_on_where_it_was(
    pipeline: Any, edited: Edit, tmp_path: Path, one_thread: None
) -> None:
    cache = Cache(store=Store(tmp_path), before="base", after="patch")
    whole = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING)
    judge = SumJudge()
    judge.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        measure_edit(pipeline, edited(), CHANGES, HELD_OUT, judge, SAMPLING, cache=cache)
    with counted(pipeline) as drawn:
        resumed = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING, cache=cache)
    # four phrases before and the first two after had been drawn when the judge was interrupted
    assert sum(drawn) == 6 + 6
    assert resumed == whole


def test_what_the_judge_does_not_know_is_refused_before_a_picture_is_drawn(pipeline: Any) -> None:
    unknown = [Change(subject="cat", old=Trait("cta"))]
    with counted(pipeline) as drawn, pytest.raises(JudgeError, match="'cta'"):
        measure_edit(pipeline, nullcontext(pipeline), unknown, [], SumJudge(), SAMPLING)
    assert drawn == []


def test_seeds_are_fixed_numbers_of_prompt_and_place() -> None:
    # sha256 of '[7, "a cat", 0]', first four bytes, by sha256sum
    assert own_seed(7, "a cat", 0) == 0x4D87A649
    assert len({own_seed(s, p, n) for s in (1, 2) for p in ("a", "b") for n in (0, 1)}) == 8


def test_the_table_and_the_plain_data_say_the_same(pipeline: Any, edited: Edit) -> None:
    effect = measure_edit(pipeline, edited(), CHANGES, HELD_OUT, SumJudge(), SAMPLING)
    text, data = as_text(effect), as_dict(effect)
    old = effect.score("old_before")
    assert old is not None
    (line,) = [line for line in text.splitlines() if "show the old concept, before" in line]
    assert f"{100 * old.value:.1f} %" in line
    assert line.endswith(" 9")
    assert "cat → pizza" in text
    assert "Judge sums" in text
    scores: Any = data["scores"]
    assert scores["old_before"] == {"value": old.value, "low": old.low, "high": old.high, "count": 9}
