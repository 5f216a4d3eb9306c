"""Outputs are refused before any work for them, and nothing foreign is swallowed."""

import os
from pathlib import Path

import pytest

from surgery.checkpoint import outputs
from surgery.checkpoint.outputs import check_outputs, refuse_foreign_files
from surgery.errors import SurgeryError


def test_an_output_below_a_file_is_refused_before_the_work_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "sheet.png", tmp_path / "file" / "deep" / "sheet.png"):
        with pytest.raises(SurgeryError, match="a file stands where a folder was expected"):
            outputs.refuse_unwritable(place)


def test_an_output_in_a_folder_of_others_is_refused_before_the_work_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.refuse_unwritable(tmp_path / "new" / "sheet.png")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for anyone but root
    with pytest.raises(SurgeryError, match="not yours to write"):
        outputs.refuse_unwritable(tmp_path / "new" / "sheet.png")


def test_outputs_that_would_cost_an_input_are_refused(tmp_path: Path) -> None:
    given, folder = tmp_path / "given", tmp_path / "folder"
    given.write_bytes(b"input")
    folder.mkdir()
    (tmp_path / "linked").hardlink_to(given)
    (tmp_path / "symbolic").symlink_to(given)
    for output in (given, tmp_path / "linked", tmp_path / "symbolic", tmp_path / "x" / ".." / "given"):
        with pytest.raises(SurgeryError, match="inside each other"):
            check_outputs([output], [given], overwrite=True)
    with pytest.raises(SurgeryError, match="inside each other"):
        check_outputs([folder / "new"], [folder])
    with pytest.raises(SurgeryError, match="inside each other"):
        check_outputs([tmp_path / "new", tmp_path / "new"], [given])
    with pytest.raises(SurgeryError, match="is a folder; a new file was expected"):
        check_outputs([folder], [given], overwrite=True)
    with pytest.raises(SurgeryError, match="exists already"):
        check_outputs([given], [])
    check_outputs([tmp_path / "new", None], [given, None])
    assert given.read_bytes() == b"input"


def test_a_folder_with_other_files_is_refused_and_the_first_are_named(tmp_path: Path) -> None:
    place = tmp_path / "out"
    refuse_foreign_files(place, "a", "an export")
    (place / "deep").mkdir(parents=True)
    (place / "a").write_text("ours")
    refuse_foreign_files(place, "a", "an export")
    for name in ("b", "deep/c"):
        (place / name).write_text("mine")
    with pytest.raises(SurgeryError, match=r"other files \(b, deep/c\); .* the folder of an export"):
        refuse_foreign_files(place, "a", "an export")
    with pytest.raises(SurgeryError, match="is a file"):
        refuse_foreign_files(place / "a", "a", "an export")
