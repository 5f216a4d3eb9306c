"""Lists of words: a file of the user's, or the names beside a checkpoint."""

import json
from pathlib import Path

import pytest

from surgery.audit.words import own_captions, own_words, read_captions, read_words
from surgery.errors import SurgeryError


def written(folder: Path, text: str, name: str = "words.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_one_phrase_a_line_without_blanks_and_repetitions(tmp_path: Path) -> None:
    file = written(tmp_path, "  cat\n\nVan Gogh\r\ncat\n \nпицца\n")
    assert read_words(file) == ("cat", "Van Gogh", "пицца")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 phrases; 1 to 100000"),
        (b" \n\n", "holds 0 phrases"),
        (b"caf\xe9", "a text with one phrase a line was expected"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(SurgeryError, match=message):
        read_words(tmp_path / "words.txt")


def test_more_phrases_than_can_be_looked_at_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="holds 100001 phrases"):
        read_words(written(tmp_path, "\n".join(map(str, range(100_001)))))


def test_a_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises((SurgeryError, OSError), match="words"):
        read_words(tmp_path / "words.txt")


def test_captions_are_spread_over_the_whole_file(tmp_path: Path) -> None:
    captions = read_captions(written(tmp_path, "\n".join(f"prompt {number}" for number in range(5000))))
    assert len(captions) == 2000
    assert captions[:3] == ("prompt 0", "prompt 2", "prompt 5")
    assert captions[-1] == "prompt 4997"


def test_few_captions_are_all_taken(tmp_path: Path) -> None:
    assert read_captions(written(tmp_path, "one\ntwo\n")) == ("one", "two")


def test_the_names_beside_a_checkpoint_are_its_words(tmp_path: Path) -> None:
    table = {
        "concepts": [{"name": "cat"}, {"name": "dog"}],
        "professions": [{"name": "cook"}, {"name": "cat"}],
    }
    written(tmp_path, json.dumps(table), "concepts.json")
    assert own_words(tmp_path) == ("cat", "dog", "cook")


def test_a_checkpoint_without_lists_has_no_words_and_no_captions(tmp_path: Path) -> None:
    assert own_words(tmp_path) == ()
    assert own_captions(tmp_path) == ()
    file = written(tmp_path, "", "model.safetensors")
    assert own_words(file) == ()
    assert own_captions(file) == ()


@pytest.mark.parametrize("text", ["[]", "{", '{"concepts": [{}]}', '{"concepts": 3}'])
def test_a_broken_table_of_concepts_is_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    written(tmp_path, text, "concepts.json")
    with pytest.raises(SurgeryError, match=r"--words"):
        own_words(tmp_path)
