"""EMCID's part of a recipe: what is read from the user's own files."""

from pathlib import Path

import pytest

from surgery.errors import MethodError
from surgery.methods.emcid.recipe import read_captions


def test_captions_are_the_lines_that_say_something(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n  \na dog")
    assert read_captions(path) == ["a cat", "a dog"]


def test_captions_in_another_encoding_are_refused_by_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("a cat\na café".encode("latin-1"))
    with pytest.raises(MethodError, match="byte 11 is no UTF-8"):
        read_captions(path)
