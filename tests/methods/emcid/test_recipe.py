"""EMCID's part of a recipe: what is read from the user's own files."""

from pathlib import Path

import pytest

from surgery.errors import MethodError
from surgery.methods.emcid.recipe import corpus_of, read_captions
from surgery.recipe import parse_recipe
from tests.recipe.examples import SMALL


def test_captions_are_the_lines_that_say_something(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n  \na dog")
    assert read_captions(path) == ["a cat", "a dog"]


def test_captions_in_another_encoding_are_refused_by_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("a cat\na café".encode("latin-1"))
    with pytest.raises(MethodError, match="byte 11 is no UTF-8"):
        read_captions(path)


def test_the_padding_counts_unless_a_published_preset_says_otherwise() -> None:
    ours = corpus_of(parse_recipe(SMALL).edits[0].emcid)
    assert (ours.include_padding, ours.count) == (True, 5000)
    preset = {"edits[0].emcid.preset": "published-objects"}
    released = corpus_of(parse_recipe(SMALL, overrides=preset).edits[0].emcid)
    assert (released.include_padding, released.count) == (False, 100_000)
    given = preset | {"edits[0].emcid.corpus.count": "null"}
    assert corpus_of(parse_recipe(SMALL, overrides=given).edits[0].emcid).count is None
