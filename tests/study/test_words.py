"""What a checkpoint says about its own words, and what is assumed of one that says nothing."""

import json
from pathlib import Path

import pytest

from surgery.errors import CheckpointError
from surgery.study.words import Words, read_words

RAW = {
    "concepts": [
        {"name": "cat", "subgroup": "animal", "aliases": ["kitty"]},
        {"name": "melon", "subgroup": "fruit", "aliases": []},
        {"name": "dog", "subgroup": "animal", "aliases": []},
    ],
    "professions": [{"name": "doctor", "subgroup": "role", "aliases": ["physician"]}],
    "left_out_subgroup": "fruit",
    "templates": {"train": ["a photo of {}"], "test": ["here is {}"]},
}


def written(folder: Path, raw: object) -> Path:
    (folder / "concepts.json").write_text(json.dumps(raw))
    return folder


def test_words_are_the_drawn_concepts_with_their_aliases_and_templates(tmp_path: Path) -> None:
    words = read_words(written(tmp_path, RAW))
    assert words.concepts == ("cat", "dog", "doctor")
    assert words.name("kitty") == words.name(" Kitty ") == "cat"
    assert words.name("melon") == "melon"
    assert words.name("something else") == "something else"
    assert words.test_templates == ("here is {}",)


def test_a_checkpoint_without_a_list_has_no_words(tmp_path: Path) -> None:
    assert read_words(tmp_path) == Words()
    assert read_words(tmp_path).others((), 5) == []


def test_a_damaged_list_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"concepts\.json"):
        read_words(written(tmp_path, {"concepts": []}))


def test_others_are_spread_evenly_and_leave_the_named_ones_out() -> None:
    words = Words(concepts=tuple("abcdefghij"))
    assert words.others({"a", "b"}, 4) == ["d", "f", "h", "j"]
    assert words.others(set("abcdefgh"), 4) == ["i", "j"]
    assert words.others((), 0) == []


def test_templates_of_each_kind_and_a_plain_one_where_there_are_none(tmp_path: Path) -> None:
    words = read_words(written(tmp_path, RAW))
    assert (words.templates("test"), words.templates("train")) == (("here is {}",), ("a photo of {}",))
    assert Words().templates("test") == ("a picture of {}",)
