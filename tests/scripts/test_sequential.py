"""The bench of edits on top of each other, at a size of seconds."""

import argparse
from pathlib import Path
from typing import Any

import pytest


def test_a_later_edit_disturbs_the_first_one_less_when_its_keys_are_protected(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(
        base="pocket-sd", seed=0, concepts=1, rounds=2, held_out=1, captions=100, steps=1, scratch=tmp_path
    )
    bench("sequential").sequential(options)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("the first", "all"))]
    first, bare, protected = (float(row[24:42]) for row in rows)
    assert first == 0
    assert 0 < protected < bare
