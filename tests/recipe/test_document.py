"""Strict YAML: the three traps of PyYAML, and everything a recipe must not hold."""

import pytest

from surgery.errors import RecipeError
from surgery.recipe.document import read_document, read_scalar, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0", 0),
        ("-17", -17),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_are_read_by_the_rules_of_yaml_1_2(text: str, value: object) -> None:
    result = read_scalar(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "off",
        "yes",
        "No",
        "y",
        "1_000",
        "0x1f",
        "010",
        "1:30",
        "2024-01-01",
        ".nan",
        ".inf",
        "1e999",
        "1" * 5000,
    ],
)
def test_words_that_older_yaml_turned_into_something_else_stay_text(text: str) -> None:
    assert read_scalar(text) == text


def test_quoted_numbers_stay_text() -> None:
    assert read_document("a: '1984'\nb: \"true\"", "r").value == {"a": "1984", "b": "true"}


def test_doubled_keys_are_all_reported_with_both_lines() -> None:
    with pytest.raises(RecipeError) as caught:
        read_document("a: 1\nb: 2\na: 3\nc: {d: 1, d: 2}\n", "r.yaml")
    assert str(caught.value) == (
        "2 faults:\n"
        "- r.yaml:3: key 'a' stands twice (first at r.yaml:1). Remove one of them.\n"
        "- r.yaml:4: key 'd' stands twice (first at r.yaml:4). Remove one of them."
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: &x 1\nb: *x\n", "alias '*x'"),
        ("a: &x [1]\n", "anchor '&x'"),
        ("a: !!python/object/apply:os.system [ls]\n", "tag"),
        ("a: !!str 5\n", "tag"),
        ("? [a, b]\n: 1\n", "key is a list"),
        ("a: 1\n---\nb: 2\n", "document"),
        ("a: [1, 2\n", "no valid YAML"),
        ("a: b: c\n", "no valid YAML"),
        ("a: '\0'\n", "no valid YAML"),
        ('a: "\\ud800"\n', "half a character"),
        ("[" * 40 + "]" * 40, "nested"),
        ("[" * 20000, "nested"),
    ],
)
def test_what_a_recipe_must_not_hold_is_refused_with_its_place(text: str, found: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml") as caught:
        read_document(text, "r.yaml")
    assert found in str(caught.value)


def test_labels_name_the_line_of_each_key_and_fall_back_to_what_is_around() -> None:
    document = read_document("a: 1\nb:\n  - c: 2\n    d: 3\n", "r.yaml")
    assert document.label(("b", 0, "d")) == "r.yaml:4"
    assert document.label(("b", 0, "missing", 7)) == "r.yaml:3"
    assert document.label(("nothing",)) == "r.yaml:1"


def test_an_empty_document_is_nothing() -> None:
    assert read_document("# only a comment\n", "r.yaml").value is None


def test_command_line_values_may_be_lists_and_mappings() -> None:
    assert read_value("[a cat, 1e-3, {b: off}]") == ["a cat", 1e-3, {"b": "off"}]
