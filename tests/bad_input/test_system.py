"""What the system refuses is said in a line, and nothing is lost: a full disk, a file not to be read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from surgery.cli import call
from tests.bad_input.case import Sound
from tests.support.fulldisk import namespaces_allowed, run_full

VERBS = (
    *("apply", "apply with undo", "revert", "diff", "compose"),
    *("convert to a file", "convert to a folder", "convert a pickle", "copy"),
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not namespaces_allowed():
        pytest.skip("this system lets no program mount a small disk of its own (user namespaces)")
    return run_full(tmp_path_factory.mktemp("disk"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_leaves_nothing_under_a_final_name_and_nothing_lost(
    outcomes: dict[str, Any], verb: str
) -> None:
    found = outcomes[verb]
    assert found["none"] == {"code": 1, "left": []}
    little, enough = found["little"], found["enough"]
    whole = enough["left"] if little["code"] == 0 else []  # what is small enough fits into little room
    assert little["left"] in (whole, ["undo.safetensors"]), found["said"]
    assert "No space left on device" in found["said"]
    assert "Traceback" not in found["said"]
    assert "fault of the program" not in found["said"]
    assert enough["code"] == 0, found["said"]
    assert enough["left"]
    assert not any(Path(name).name.startswith(".") for name in enough["left"])
    assert found["again"]["same"]


def test_the_full_disk_was_tried_by_every_verb_that_is_listed(outcomes: dict[str, Any]) -> None:
    assert set(outcomes) == set(VERBS)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """A file that may not be read; the superuser, who may read all, becomes nobody."""
    mode, superuser = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    try:
        if superuser:
            os.seteuid(65534)
        yield
    finally:
        if superuser:
            os.seteuid(0)
        path.chmod(mode)


@pytest.mark.parametrize("part", ["base/unet/diffusion_pytorch_model.safetensors", "base/model_index.json"])
def test_a_file_that_may_not_be_read_is_named(
    sound: Sound, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sound.base.parent
    assert (
        call(["verify", str(sound.patch), str(sound.base)]) == 3
    )  # everything is imported, and it can be read
    capsys.readouterr()
    with open_to_all(folder), unreadable(folder / part):
        code = call(["apply", str(sound.patch), str(sound.base), "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert code == 1
    assert Path(part).name in said
    assert "Permission denied" in said
    assert "fault of the program" not in said
    assert list(tmp_path.iterdir()) == []


@contextmanager
def open_to_all(folder: Path) -> Iterator[None]:
    """The folders above and below may be entered by anyone; pytest keeps them to itself."""
    folders = [path for path in (folder, *folder.parents) if path.owner() == folder.owner()]
    modes = {path: path.stat().st_mode for path in folders if path != Path("/")}
    for path, mode in modes.items():
        path.chmod(mode | 0o755)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
