"""Pictures sorted into groups, and how far their shares are from the wanted ones."""

import numpy as np
import pytest

from surgery.evaluate import OTHER, UNDECIDED, Wanted, counted, group_faults, sorted_into
from surgery.evaluate.deviation import deviation, deviation_scores, relative_deviation
from surgery.judge import Labels, Trait, Verdicts

LABELS = Labels(concept=("doctor",), gender=("woman", "man"), skin=("light", "medium", "dark"))


def verdicts(gender: list[tuple[float, float]], skin: list[tuple[float, float, float]]) -> Verdicts:
    none = np.zeros((len(gender), 0), np.float32)
    return Verdicts(
        labels=LABELS,
        concept=np.zeros((len(gender), 1), np.float32),
        style=none,
        background=none,
        gender=np.array(gender, np.float32),
        skin=np.array(skin, np.float32),
    )


def wanted(*values: tuple[str, ...]) -> list[Wanted]:
    axes = ("gender", "skin")
    return [
        Wanted(
            traits=tuple(Trait(name, axis) for name, axis in zip(names, axes, strict=False)),  # type: ignore[arg-type]  # axes of the table above
            share=1 / len(values),
        )
        for names in values
    ]


def test_a_picture_belongs_to_the_group_whose_every_trait_it_shows() -> None:
    seen = verdicts(
        [(0.9, 0.1), (0.1, 0.9), (0.1, 0.9)],
        [(0.8, 0.1, 0.1), (0.1, 0.1, 0.8), (0.1, 0.8, 0.1)],
    )
    groups = wanted(("woman", "light"), ("man", "dark"))
    numbers = sorted_into(groups, seen)
    assert numbers.tolist() == [0, 1, OTHER]
    assert counted(groups, numbers) == ((1, 1), 1)


def test_a_picture_that_is_less_than_twice_as_likely_one_as_the_other_is_undecided() -> None:
    even = (0.8, 0.1, 0.1)
    seen = verdicts([(0.65, 0.35), (0.68, 0.32)], [even, even])
    groups = wanted(("woman",), ("man",))
    numbers = sorted_into(groups, seen)
    assert numbers.tolist() == [UNDECIDED, 0]
    assert counted(groups, numbers) == ((1, 0), 0)


def test_attributes_that_nobody_can_decide_are_all_named() -> None:
    groups = [
        Wanted(traits=(Trait("tall", "height"), Trait("elf", "gender")), share=0.5),  # type: ignore[arg-type]  # no axis
        Wanted(traits=(Trait("doctor"),), share=0.5),
    ]
    faults = group_faults(groups, LABELS)
    assert len(faults) == 3
    assert faults[0].startswith("no judge decides 'height'; expected one of style, background, gender, skin")
    assert "'elf' is none of them" in faults[1]
    assert "concepts do not exclude each other" in faults[2]


@pytest.mark.parametrize(
    ("shares", "targets", "points", "relative"),
    [
        ([0.9, 0.1], [0.5, 0.5], 0.4, 0.8),
        ([0.25, 0.75], [0.5, 0.5], 0.25, 0.5),
        ([0.4, 0.4], [0.5, 0.5], 0.2, 0.2),  # a fifth shows neither
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 0.3, (1.5 + 0 + 0.6) / 3),
    ],
)
def test_deviations_are_those_worked_out_by_hand(
    shares: list[float], targets: list[float], points: float, relative: float
) -> None:
    assert deviation(shares, targets) == pytest.approx(points)
    assert relative_deviation(shares, targets) == pytest.approx(relative)


def test_scores_are_means_over_the_phrases_and_the_factor_their_ratio() -> None:
    even = [0.5, 0.5]
    scores = {
        score.name: score
        for score in deviation_scores(
            [[0.9, 0.1], [0.3, 0.7]], [[0.55, 0.45], [0.5, 0.5]], [even, even], [100, 100]
        )
    }
    assert scores["deviation_before"].value == pytest.approx(0.3)
    assert scores["deviation_after"].value == pytest.approx(0.025)
    assert scores["deviation_factor"].value == pytest.approx(12)
    assert scores["deviation_before"].low == pytest.approx(0.2)
    assert scores["deviation_before"].high == pytest.approx(0.4)
    # E|p - ½| of 100 fair throws, from the binomial itself: 0.0398
    assert scores["deviation_floor"].value == pytest.approx(0.0398, abs=0.001)


def test_of_a_lone_phrase_the_interval_is_of_its_pictures() -> None:
    found = {
        score.name: score
        for score in deviation_scores([(0.9, 0.1)], [(0.5, 0.5)], [(0.5, 0.5)], [10], pictures_before=[100])
    }
    before, after = found["deviation_before"], found["deviation_after"]
    assert before.value == pytest.approx(0.4)
    # the share's standard error is 3 points
    assert before.low == pytest.approx(0.34, abs=0.015)
    assert before.high == pytest.approx(0.46, abs=0.015)
    # five of ten say little: of 0.2 and of 0.8 they are as rare as 1 in 40
    assert (after.value, after.low) == (0, 0)
    assert 0.2 <= after.high <= 0.4
    assert "deviation_factor" not in found


@pytest.mark.parametrize(("share", "pictures"), [(0.5, 32), (0.55, 100), (0.6, 32), (0.8, 100)])
def test_that_interval_holds_the_truth_as_often_as_it_says(share: float, pictures: int) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        seen = rng.binomial(pictures, share) / pictures
        after = next(
            score
            for score in deviation_scores([(1, 0)], [(seen, 1 - seen)], [(0.5, 0.5)], [pictures])
            if score.name == "deviation_after"
        )
        held += after.low - 1e-9 <= share - 0.5 <= after.high + 1e-9
    assert held >= 90
