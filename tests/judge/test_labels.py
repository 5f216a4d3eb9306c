from dataclasses import replace

import numpy as np
import pytest

from surgery.errors import JudgeError
from surgery.judge import Labels, Trait, Verdicts

LABELS = Labels(
    concept=("cat", "dog", "red circle", "none"),
    style=("plain", "mosaic"),
    merged={"blue circle": "red circle"},
)


def verdicts() -> Verdicts:
    none = np.zeros((3, 0), np.float32)
    return Verdicts(
        labels=LABELS,
        concept=np.array([[0.9, 0.8, 0.0, 0.1], [0.49, 0.1, 0.5, 0.0], [0.0, 0.0, 0.0, 0.9]], np.float32),
        style=np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]], np.float32),
        background=none,
        gender=none,
        skin=none,
    )


def test_a_concept_is_shown_from_one_half_on_beside_any_other() -> None:
    assert verdicts().shows(Trait("cat")).tolist() == [True, False, False]
    assert verdicts().shows(Trait("dog")).tolist() == [True, False, False]
    assert verdicts().shows(Trait("red circle")).tolist() == [False, True, False]


def test_of_concepts_that_exclude_each_other_the_likeliest_is_shown_however_unlikely() -> None:
    shares = np.array([[0.3, 0.4, 0.2, 0.1], [0.9, 0.1, 0.0, 0.0], [0.25, 0.2, 0.3, 0.25]], np.float32)
    labels = replace(verdicts().labels, exclusive=True)
    exclusive = replace(verdicts(), concept=shares, labels=labels)
    assert exclusive.shows(Trait("dog")).tolist() == [True, False, False]
    assert exclusive.shows(Trait("blue circle")).tolist() == [False, False, True]


def test_a_style_is_shown_where_it_is_the_likeliest() -> None:
    assert verdicts().shows(Trait("mosaic", "style")).tolist() == [False, True, False]


def test_a_look_alike_is_answered_by_the_one_that_stands_for_both() -> None:
    assert LABELS.column(Trait("blue circle")) == 2
    assert verdicts().probability(Trait("blue circle")).tolist() == pytest.approx([0.0, 0.5, 0.0])


def test_likeliest_names_one_for_each_picture() -> None:
    assert verdicts().likeliest() == ["cat", "red circle", "none"]
    assert len(verdicts()) == 3


def test_an_unknown_concept_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(JudgeError, match="Did you mean 'dog'"):
        verdicts().shows(Trait("dogs"))


def test_an_axis_the_judge_does_not_see_is_refused() -> None:
    with pytest.raises(JudgeError, match="says nothing about gender"):
        verdicts().shows(Trait("woman", "gender"))


def test_a_name_on_one_axis_is_not_known_on_another() -> None:
    assert LABELS.fault(Trait("cat", "style")) is not None
    assert LABELS.fault(Trait("cat")) is None


def test_traits_read_as_words() -> None:
    assert [str(Trait("cat")), str(Trait("mosaic", "style"))] == ["cat", "style mosaic"]
