"""The papers' numbers, worked out by hand."""

import numpy as np
import pytest

from surgery.evaluate import Change, EditEffect, Probe, Sampling, headlines
from surgery.evaluate.effect import ChangeEffect, ProbeEffect
from surgery.evaluate.seen import Pair, held_out_scores
from surgery.judge import Trait
from surgery.record import Score

SAMPLING = Sampling(templates=("{}",))


def effect(
    after: tuple[float, ...] = (), kept: tuple[float, ...] = (), scores: tuple[Score, ...] = ()
) -> EditEffect:
    cat, dog = Change(subject="cat", old=Trait("cat")), Probe(subject="dog", shows=Trait("dog"))
    changes = tuple(
        ChangeEffect(
            change=cat, old_before=1.0, old_after=value, new_before=None, new_after=None, destination=None
        )
        for value in after
    )
    probes = tuple(ProbeEffect(probe=dog, before=1.0, after=value, chance=1.0) for value in kept)
    return EditEffect(
        scores=scores, changes=changes, held_out=probes, judge="j", judge_accuracy={}, sampling=SAMPLING
    )


def score(name: str, value: float) -> Score:
    return Score(name=name, value=value, low=value, high=value, count=10)


def test_h_o_is_the_harmonic_mean_of_the_three_rates() -> None:
    found = headlines(
        {
            "generalisation": effect(after=(0.1, 0.3), scores=(score("old_after", 0.2),)),
            "aliases": effect(after=(0.5,)),
            "held out": effect(kept=(0.9, 0.7)),
        }
    )
    overall = found[-1]
    assert overall.name == "h_o"
    assert overall.value == pytest.approx(3 / (1 / 0.8 + 1 / 0.8 + 1 / 0.5))
    assert overall.low <= overall.value <= overall.high
    assert found[0].name == "acc_e"


def test_without_aliases_it_is_the_mean_of_two() -> None:
    overall = headlines({"generalisation": effect(after=(0.4,)), "held out": effect(kept=(0.3,))})[-1]
    assert overall.name == "h_c"
    assert overall.value == pytest.approx(2 / (1 / 0.6 + 1 / 0.3))


def test_sections_that_were_not_measured_have_no_headline() -> None:
    assert headlines({"quality": effect(kept=(1.0,))}) == ()


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
