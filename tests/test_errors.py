"""Errors: collected faults and nearest names."""

import pytest

from surgery.errors import PatchError, RecipeError, SurgeryError, brief, nearest, printable, raise_all


def test_no_fault_raises_nothing() -> None:
    raise_all(RecipeError, [])


def test_one_fault_is_the_whole_message() -> None:
    with pytest.raises(PatchError) as caught:
        raise_all(PatchError, ["it is torn"])
    assert str(caught.value) == "it is torn"
    assert caught.value.faults == ("it is torn",)


def test_several_faults_are_listed_and_kept_apart() -> None:
    with pytest.raises(SurgeryError) as caught:
        raise_all(RecipeError, ["a", "b"])
    assert str(caught.value) == "2 faults:\n- a\n- b"
    assert caught.value.faults == ("a", "b")


@pytest.mark.parametrize(
    ("name", "expected"), [("stpes", "steps"), ("STEPS", "steps"), ("pocket_sd", "pocket-sd"), ("xyz", None)]
)
def test_the_nearest_name_is_the_one_a_person_meant(name: str, expected: str | None) -> None:
    assert nearest(name, ["steps", "ridge", "pocket-sd"]) == expected


def test_nothing_is_near_when_nothing_is_known() -> None:
    assert nearest("a", []) is None


def test_a_message_holds_nothing_that_a_terminal_acts_on() -> None:
    # clear the screen, a C1 control, text that runs the other way, half of a surrogate pair
    error = RecipeError("the key \x1b[2J \x9b1m \u202e \ud800 is \u00fcber\nthe second line", ["\x07"])
    assert str(error) == "the key \\x1b[2J \\x9b1m \\u202e \\ud800 is \u00fcber\nthe second line"
    assert error.faults == ("\\x07",)
    assert printable("plain") == "plain"


def test_many_faults_are_counted_and_the_first_hundred_shown() -> None:
    with pytest.raises(SurgeryError) as caught:
        raise_all(RecipeError, [str(number) for number in range(10_000)])
    assert len(caught.value.faults) == 10_000
    assert str(caught.value).splitlines()[-2:] == ["- 99", "- and 9900 more"]


def test_what_is_long_or_deep_is_shown_in_brief() -> None:
    deep: object = []
    for _ in range(2000):
        deep = [deep]
    assert len(brief(deep)) < 100
    assert len(brief("x" * 10**6)) == 80
    assert brief([1, 2]) == "[1, 2]"
