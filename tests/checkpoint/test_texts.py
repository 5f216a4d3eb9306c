"""Small texts cost no more memory than they are worth, and never hold the program up."""

import os
from pathlib import Path

import pytest

from surgery.checkpoint.texts import parse_json, read_json, read_small


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe{}", "is no UTF-8 text"),
        (b"\xef\xbb\xbf{}", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b"[" + b"0," * 1_000_001 + b"0]", "lists 1000002 things"),
        (b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_a_false_json_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_json(tmp_path / "x.json")
    if not content.startswith(b"\xef"):
        with pytest.raises(ValueError, match=said):
            parse_json(content)


def test_what_is_no_small_regular_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(ValueError, match="takes 5 bytes; at most 4"):
        read_small(tmp_path / "large", 4)
    with pytest.raises(ValueError, match="is a folder"):
        read_small(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        read_small(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")  # a read of it would wait for ever
    with pytest.raises(ValueError, match="is no regular file"):
        read_small(tmp_path / "pipe")


def test_a_sound_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"ü": [1, 2.5, null]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"ü": [1, 2.5, None]}
