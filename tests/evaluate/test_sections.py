"""Several sections in one measurement, and pictures that must show two things at once."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from surgery.errors import JudgeError
from surgery.evaluate import Change, Probe, Section, measure_edit, measure_sections
from surgery.judge import Verdicts
from tests.evaluate.test_effect import CAT, DOG, PIZZA, SAMPLING, SumJudge, counted
from tests.support.threads import threads

Edit = Callable[[], AbstractContextManager[Any]]

CHANGE = Change(subject="cat", old=CAT, new=PIZZA, destination="pizza")


class FeatureSums(SumJudge):
    """The same judge with the means of the colours as features."""

    def features(self, pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        means: np.ndarray[Any, Any] = pictures.reshape(len(pictures), -1, 3).mean(axis=1, dtype=np.float32)
        return means


def test_a_section_by_itself_and_among_others_is_the_same(pipeline: Any, edited: Edit) -> None:
    with threads(1):
        _compare_alone_and_among(pipeline, edited)


def _compare_alone_and_among(pipeline: Any, edited: Edit) -> None:
    one = Section(name="one", sampling=SAMPLING, changes=(CHANGE,))
    other = Section(name="other", sampling=SAMPLING, probes=(Probe(subject="dog", shows=DOG),))
    both = measure_sections(pipeline, edited(), [one, other], SumJudge())
    assert both["one"] == measure_edit(pipeline, edited(), [CHANGE], [], SumJudge(), SAMPLING)
    assert both["other"] == measure_edit(pipeline, edited(), [], other.probes, SumJudge(), SAMPLING)


def test_pictures_that_two_sections_ask_for_are_drawn_once(pipeline: Any, edited: Edit) -> None:
    sections = [Section(name=name, sampling=SAMPLING, changes=(CHANGE,)) for name in ("one", "other")]
    with counted(pipeline) as drawn:
        measure_sections(pipeline, edited(), sections, SumJudge())
    assert sum(drawn) == 3 * 6  # cat before and after, pizza before


def test_clip_skip_is_drawn_by_itself(pipeline: Any, edited: Edit) -> None:
    sections = [
        Section(name="as it is", sampling=SAMPLING, changes=(CHANGE,)),
        Section(name="skipped", sampling=replace(SAMPLING, clip_skip=2), changes=(CHANGE,)),
    ]
    with counted(pipeline) as drawn:
        measure_sections(pipeline, edited(), sections, SumJudge())
    assert sum(drawn) == 2 * 3 * 6


def test_what_is_beside_a_phrase_must_be_shown_as_well(pipeline: Any) -> None:
    seen: list[Verdicts] = []

    class Kept(SumJudge):
        def score(self, pictures: np.ndarray[Any, Any]) -> Verdicts:
            seen.append(super().score(pictures))
            return seen[-1]

    probe = Probe(subject="dog", shows=DOG, templates=("a cat and a {}",), beside=CAT)
    effect = measure_edit(pipeline, nullcontext(pipeline), [], [probe], Kept(), replace(SAMPLING, samples=8))
    expected = np.mean(seen[0].shows(DOG) & seen[0].shows(CAT))
    assert 0 < expected < np.mean(seen[0].shows(DOG))
    assert effect.held_out[0].before == pytest.approx(expected)


def test_pictures_are_compared_where_a_section_asks_for_it(pipeline: Any, edited: Edit) -> None:
    probes = (Probe(subject="dog", shows=DOG), Probe(subject="pizza", shows=PIZZA))
    section = Section(name="quality", sampling=SAMPLING, probes=probes, compared=True)
    same = measure_sections(pipeline, nullcontext(pipeline), [section], FeatureSums())["quality"]
    other = measure_sections(pipeline, edited(), [section], FeatureSums())["quality"]
    values = {score.name: score.value for score in same.scores}
    assert values["moved"] == 0
    assert values["frechet"] == pytest.approx(0, abs=1e-6)
    assert all(other.score(name).value > 0 for name in ("moved", "frechet"))  # type: ignore[union-attr]


def test_a_judge_without_features_cannot_compare(pipeline: Any) -> None:
    section = Section(name="q", sampling=SAMPLING, probes=(Probe(subject="dog", shows=DOG),), compared=True)
    with pytest.raises(JudgeError, match="gives verdicts and no features"):
        measure_sections(pipeline, nullcontext(pipeline), [section], SumJudge())


def test_drawings_give_a_distance_before_and_after(pipeline: Any) -> None:
    section = Section(name="q", sampling=SAMPLING, probes=(Probe(subject="dog", shows=DOG),), compared=True)
    drawings = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    found = measure_sections(pipeline, nullcontext(pipeline), [section], FeatureSums(), drawings=drawings)
    before, after = (found["q"].score(f"frechet_drawings_{when}") for when in ("before", "after"))
    assert before is not None
    assert after is not None
    assert before.value == after.value > 0
