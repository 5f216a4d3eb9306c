"""The papers' numbers, worked out by hand."""

import numpy as np
import pytest

from surgery.evaluate import EditEffect, Sampling, headlines
from surgery.evaluate.seen import Pair, held_out_scores
from surgery.record import Score

SAMPLING = Sampling(templates=("{}",))


def effect(**scores: float) -> EditEffect:
    """One with these scores, known to 0.1 either way."""
    return EditEffect(
        scores=tuple(
            Score(name=name, value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), count=10)
            for name, value in scores.items()
        ),
        changes=(),
        held_out=(),
        judge="j",
        judge_accuracy={},
        sampling=SAMPLING,
    )


def test_h_o_is_the_harmonic_mean_of_the_three_rates() -> None:
    found = headlines(
        {
            "generalisation": effect(old_after=0.2),
            "aliases": effect(old_after=0.5),
            "held out": effect(held_out_after=0.8),
        }
    )
    overall = found[-1]
    assert overall.name == "h_o"
    assert overall.value == pytest.approx(3 / (1 / 0.8 + 1 / 0.8 + 1 / 0.5))
    assert overall.low < overall.value - 0.05 < overall.value + 0.05 < overall.high
    assert overall.count == 30
    assert found[0].name == "acc_e"


def test_without_aliases_it_is_the_mean_of_two() -> None:
    overall = headlines({"generalisation": effect(old_after=0.4), "held out": effect(held_out_after=0.3)})[-1]
    assert overall.name == "h_c"
    assert overall.value == pytest.approx(2 / (1 / 0.6 + 1 / 0.3))


def test_a_rate_of_nothing_leaves_nothing_and_a_perfect_edit_is_not_sure_to_be_perfect() -> None:
    undone = {"generalisation": effect(old_after=1.0), "aliases": effect(old_after=1.0)}
    nothing = headlines({**undone, "held out": effect(held_out_after=0.9)})[-1]
    assert nothing.value == nothing.low == 0
    assert nothing.high == pytest.approx(3 / (10 + 10 + 1))  # all parts at the ends of their intervals
    perfect = headlines({"generalisation": effect(old_after=0.0), "held out": effect(held_out_after=1.0)})[-1]
    assert perfect.low == pytest.approx(2 / (2 + 2**0.5 * (1 / 0.9 - 1)))
    assert perfect.high == 1


def test_sections_that_were_not_measured_have_no_headline() -> None:
    assert headlines({"quality": effect(held_out_after=1.0)}) == ()


def test_the_worst_phrases_are_chosen_by_one_half_and_measured_by_the_other() -> None:
    same = Pair(before=np.ones(40, bool), after=np.ones(40, bool))
    lost = Pair(before=np.ones(40, bool), after=np.zeros(40, bool))
    worst = {s.name: s for s in held_out_scores([*[same] * 39, lost])}["held_out_worst"]
    # two of forty phrases are the worst 5 %: the lost one, and one that kept everything
    assert worst.value == pytest.approx(-0.5)
    rng = np.random.default_rng(0)
    noise = [Pair(before=rng.random(40) < 0.5, after=rng.random(40) < 0.5) for _ in range(40)]
    unlucky = sorted(float(pair.after.mean() - pair.before.mean()) for pair in noise)
    steady = {s.name: s for s in held_out_scores(noise)}["held_out_worst"]
    assert np.mean(unlucky[:2]) < -0.15
    assert abs(steady.value) < 0.1
