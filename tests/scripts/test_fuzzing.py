"""The fuzzer: its changes keep JSON, its watch sees writes and programs, its choice keeps what counts."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield


def test_changes_keep_json_being_json_and_the_other_parts_as_they_are() -> None:
    from fuzzing.mutate import mutated

    table = {"a": [1, 2.5, None, {"b": "input_blocks.1.0"}], "c": {}}
    text = b"not json\0" + json.dumps(table).encode()
    found = set()
    for seed in range(300):
        made = mutated(text, random.Random(seed))
        if made is None:  # the part that is no JSON was chosen
            continue
        first, _, second = made.partition(b"\0")
        assert first == b"not json"
        json.loads(second.decode("utf-8", "surrogatepass"))
        found.add(second)
    assert len(found) > 100


def test_the_watch_sees_what_is_more_than_reading(tmp_path: Path) -> None:
    from fuzzing.guard import Watch

    watch = Watch()
    (tmp_path / "x").write_text("before the watch")
    with watch.reading():
        (tmp_path / "x").read_text()
    with pytest.raises(AssertionError, match="open"), watch.reading():
        (tmp_path / "x").write_text("while it watches")
    with pytest.raises(AssertionError, match=r"subprocess\.Popen"), watch.reading():
        subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(AssertionError, match=r"os\.system"), watch.reading():
        os.system("true")
    with pytest.raises(AssertionError, match=r"os\.remove"), watch.reading():
        (tmp_path / "x").unlink()
    with watch.reading():
        pass


def test_the_smallest_inputs_that_reach_new_lines_are_kept(tmp_path: Path) -> None:
    from fuzzing.corpus import fewest

    from surgery.errors import printable

    for name, content in (("a", "x"), ("b", "yy"), ("c", "\x1b\x1b\x1b"), ("d", "\x07\x07\x07\x07")):
        (tmp_path / name).write_text(content)

    def read(data: bytes) -> None:
        printable(data.decode())

    kept = fewest(tmp_path.iterdir(), read, 1000)
    assert [file.name for file in kept] == ["a", "c"]  # b goes as a does, d as c
    assert [file.name for file in fewest(tmp_path.iterdir(), read, 2)] == ["a"]


def test_an_input_that_a_reader_fails_on_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fuzzing.corpus import fewest

    def read(data: bytes) -> None:
        raise KeyError(data)

    (tmp_path / "a").write_text("x")
    assert fewest(tmp_path.iterdir(), read, 1000) == []
    assert "a is left out: KeyError" in capsys.readouterr().out
