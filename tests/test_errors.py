"""Errors: collected faults and nearest names."""

import pytest

from surgery.errors import PatchError, RecipeError, SurgeryError, nearest, raise_all


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
