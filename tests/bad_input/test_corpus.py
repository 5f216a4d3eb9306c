"""The fuzzer's saved inputs, each given to its reader; and in CI a minute of looking for new ones."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = sorted((ROOT / "tests" / "bad_input" / "corpus").iterdir())


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        from fuzzing.readers import Readers

        patch.chdir(ROOT)
        yield Readers(tmp_path_factory.mktemp("readers"))


def test_sound_input_is_read_by_every_reader(readers: Any) -> None:
    seeds = list(readers.seeds())
    assert {seed[0] for seed in seeds} == set(range(len(readers.table)))
    for seed in seeds:
        readers.table[seed[0]](seed[1:])()  # an error of ours would be raised here


def test_saved_inputs_are_read_or_refused(readers: Any) -> None:
    assert len(CORPUS) >= 50
    assert sum(file.stat().st_size for file in CORPUS) <= 200_000
    for file in CORPUS:
        readers.read(file.read_bytes())


@pytest.mark.slow
def test_a_minute_of_fuzzing_finds_nothing_that_a_reader_may_not_do() -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; it has wheels for Linux only")
    command = [sys.executable, str(ROOT / "scripts" / "fuzz"), "--seconds", "60", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "stat::number_of_executed_units" in done.stderr
