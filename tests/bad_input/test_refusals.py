"""Whatever is handed in, the program says in a line what is wrong, writes nothing and runs nothing."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from surgery.cli import call
from surgery.errors import printable
from tests.bad_input.case import Case, Place, Sound
from tests.bad_input.folders import folder_cases
from tests.bad_input.headers import header_cases
from tests.bad_input.others import other_cases
from tests.bad_input.patches import patch_cases
from tests.bad_input.singles import single_cases
from tests.bad_input.sound import make_sound
from tests.bad_input.words import word_cases
from tests.support.measure import anonymous_bytes, peak_memory

MOST_MEMORY = 400_000_000  # bytes beside what there was before
LONGEST_S = 60  # on a machine that others use; each takes milliseconds
LONGEST_MESSAGE = 20_000


def all_cases() -> list[Case]:
    """The patches' cases are made from the texts of a sound one."""
    with TemporaryDirectory() as folder:
        sound = make_sound(Path(folder))
        lies = list(patch_cases(sound.patch, sound.undo))
    return [*header_cases(), *folder_cases(), *single_cases(), *word_cases(), *other_cases(), *lies]


CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_refused_in_words(
    case: Case,
    sound: Sound,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(root=tmp_path, sound=sound)
    arguments = [str(argument) for argument in case.make(place)]
    before = (listed(tmp_path), listed(sound.base.parent))
    capsys.readouterr()
    started = anonymous_bytes()
    with time_limit(LONGEST_S), peak_memory() as memory:
        code = call(arguments)
    said = capsys.readouterr()
    assert code == case.code, said.err
    assert re.search(case.says, said.err), said.err
    assert "fault of the program" not in said.err
    assert "Traceback" not in said.err
    assert len(said.err) < LONGEST_MESSAGE
    assert said.err == printable(said.err)
    assert said.out == ""
    assert (listed(tmp_path), listed(sound.base.parent)) == before
    assert not place.mark.exists()
    assert memory.count - started < MOST_MEMORY


def test_there_are_enough_of_them() -> None:
    assert len({case.fault for case in CASES}) >= 40
    assert len(CASES) >= 200
    assert len({str(case) for case in CASES}) == len(CASES)


def listed(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder: its kind, its size, and when it was written to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fails what hangs, also in a read that never returns."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
