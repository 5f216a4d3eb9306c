"""Final names are whole or absent, whatever stops the writer."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from surgery.checkpoint import atomic
from surgery.checkpoint.atomic import atomic_file, fault_hook, scratch_folder
from surgery.errors import SurgeryError
from tests.support.faults import FullDisk, Kill, Killed, Trace, count_steps, names_can_be_swapped

CHUNKS = [b"first", b"second", b"third"]
WHOLE = b"firstsecondthird"


def write_file(path: Path, overwrite: bool = False) -> None:
    with atomic.atomic_file(path, overwrite=overwrite) as temporary:
        atomic.write_bytes(temporary, CHUNKS)


def write_folder(path: Path, overwrite: bool = False) -> None:
    with atomic.atomic_folder(path, overwrite=overwrite) as temporary:
        (temporary / "inner").mkdir()
        atomic.write_bytes(temporary / "inner" / "data", CHUNKS)
        atomic.write_bytes(temporary / "config", [b"{}"])


def content(path: Path) -> dict[str, bytes] | bytes | None:
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}
    return path.read_bytes() if path.exists() else None


WRITERS = [pytest.param(write_file, id="file"), pytest.param(write_folder, id="folder")]
Writer = Callable[..., None]


@pytest.mark.parametrize("write", WRITERS)
def test_a_new_output_is_whole_and_alone(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "out")
    assert content(tmp_path / "out") in (WHOLE, {"inner/data": WHOLE, "config": b"{}"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", WRITERS)
def test_an_existing_output_is_refused_and_kept(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(SurgeryError, match=r"exists already.*overwrite"):
        write(tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("write", WRITERS)
def test_a_kill_at_any_step_leaves_no_output_or_the_whole_one(tmp_path: Path, write: Writer) -> None:
    whole = tmp_path / "whole" / "out"
    steps = count_steps(lambda: write(whole))
    for at in range(steps):
        out = tmp_path / str(at) / "out"
        with pytest.raises(Killed), atomic.fault_hook(Kill(at)):
            write(out)
        assert content(out) in (None, content(whole))
        if not out.exists():
            write(out)
        assert content(out) == content(whole)


@pytest.mark.parametrize("swap", [True, False], ids=["one-step", "two-steps"])
@pytest.mark.parametrize("write", WRITERS)
def test_a_kill_while_replacing_leaves_the_old_or_the_new(
    tmp_path: Path, write: Writer, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr(atomic, "_swap_names", lambda left, right: False)
    whole = tmp_path / "whole" / "out"
    write(whole)
    steps = count_steps(lambda: write(whole, overwrite=True))
    gaps = 0
    for at in range(steps):
        out = tmp_path / str(at) / "out"
        old = start_with_old(out, folder=write is write_folder)
        with pytest.raises(Killed), atomic.fault_hook(Kill(at)):
            write(out, overwrite=True)
        gaps += not out.exists()
        assert content(out) in (None, old, content(whole))
        write(out, overwrite=True)
        assert content(out) == content(whole)
        assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    # Only a folder on a system that cannot swap names is ever absent: between its two renames.
    assert gaps == (0 if write is write_file or names_can_be_swapped(tmp_path) else 1)


def start_with_old(out: Path, folder: bool) -> object:
    out.parent.mkdir()
    if folder:
        out.mkdir()
        (out / "old").write_bytes(b"old")
    else:
        out.write_bytes(b"old")
    return content(out)


def test_the_old_folder_comes_back_after_a_kill_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_swap_names", lambda left, right: False)
    out = tmp_path / "out"
    old = start_with_old(tmp_path / "parent" / "out", folder=True)
    (tmp_path / "parent" / "out").rename(out)
    at = 0
    while out.exists():
        with pytest.raises(Killed), atomic.fault_hook(Kill(at)):
            write_folder(out, overwrite=True)
        at += 1
    with pytest.raises(SurgeryError, match="exists already"):
        write_folder(out)
    assert content(out) == old


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_leaves_the_old_output_and_nothing_else(tmp_path: Path, write: Writer) -> None:
    out = tmp_path / "out"
    write(out)
    before = content(out)
    for at in range(3):
        with (
            pytest.raises(SurgeryError, match=r"No space left.*make room"),
            atomic.fault_hook(FullDisk(at)),
        ):
            write(out, overwrite=True)
        assert content(out) == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", WRITERS)
def test_an_exception_in_the_block_leaves_nothing(tmp_path: Path, write: Writer) -> None:
    context = atomic.atomic_file if write is write_file else atomic.atomic_folder
    with pytest.raises(KeyError), context(tmp_path / "out"):
        raise KeyError("from the caller")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_every_file_is_flushed_after_its_last_write_and_before_the_rename(
    tmp_path: Path, write: Writer
) -> None:
    trace = Trace()
    with atomic.fault_hook(trace):
        write(tmp_path / "out")
    final = trace.steps.index(("rename", tmp_path / "out"))
    written = {path for primitive, path in trace.steps if primitive == "write"}
    for path in written:
        last = max(place for place, step in enumerate(trace.steps) if step == ("write", path))
        assert last < trace.steps.index(("fsync", path)) < final
    assert trace.steps[final + 1 :] == [("fsync", tmp_path)]


def test_what_another_living_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        foreign = tmp_path / f".out.{other.pid}.{other.pid}.0123abcd.partial"
        foreign.write_bytes(b"half")
        write_file(tmp_path / "out")
        assert foreign.exists()
        assert other.stdin is not None
        other.stdin.close()
        other.wait()
    write_file(tmp_path / "out", overwrite=True)
    assert not foreign.exists()


def test_files_of_other_outputs_and_of_the_user_are_not_swept(tmp_path: Path) -> None:
    kept = {f".other.{os.getpid()}.{os.getpid()}.0123abcd.partial", ".out.notes.partial"}
    for name in kept:
        (tmp_path / name).write_bytes(b"mine")
    write_file(tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == kept | {"out"}


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "out")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("write", WRITERS)
def test_a_name_that_another_writer_took_meanwhile_stays_his(tmp_path: Path, write: Writer) -> None:
    place = tmp_path / "out"

    def other(primitive: str, path: Path) -> None:
        if (primitive, path) == ("rename", place):
            place.write_bytes(b"his")

    with pytest.raises(SurgeryError, match="exists already"), fault_hook(other):
        write(place)
    assert content(tmp_path) == {"out": b"his"}


def test_a_folder_that_another_writer_put_meanwhile_is_replaced_when_that_is_allowed(tmp_path: Path) -> None:
    place = tmp_path / "out"

    def other(primitive: str, path: Path) -> None:
        if (primitive, path) == ("rename", place) and not place.exists():
            place.mkdir()
            (place / "his").write_bytes(b"")

    with fault_hook(other):
        write_folder(place, overwrite=True)
    assert content(place) == {"inner/data": WHOLE, "config": b"{}"}


@pytest.mark.parametrize("write", WRITERS)
def test_a_link_to_nothing_is_replaced_when_that_is_allowed(tmp_path: Path, write: Writer) -> None:
    place = tmp_path / "out"
    place.symlink_to(tmp_path / "nothing")
    with pytest.raises(SurgeryError, match="exists already"):
        write(place)
    write(place, overwrite=True)
    assert not place.is_symlink()
    assert content(place) in (WHOLE, {"inner/data": WHOLE, "config": b"{}"})


def test_what_a_killed_process_left_in_a_scratch_folder_goes_with_the_next_writer(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"done")
        left = tmp_path / f".out.{gone_process()}.1.00000000.partial"
        shutil.copytree(folder, left)
    assert not folder.exists()
    with atomic_file(tmp_path / "out") as temporary:
        temporary.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def gone_process() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_of_one_output_is_refused_and_a_later_one_is_not(
    tmp_path: Path, overwrite: bool
) -> None:
    out = tmp_path / "out"
    with atomic_file(out, overwrite=overwrite) as temporary:
        with (
            pytest.raises(SurgeryError, match="is being written by another run"),
            atomic_file(out, overwrite=overwrite),
        ):
            pass
        with atomic_file(tmp_path / "other") as elsewhere:
            elsewhere.write_bytes(b"2")
        temporary.write_bytes(b"1")
    with atomic_file(out, overwrite=True) as temporary:
        temporary.write_bytes(b"3")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out": b"3", "other": b"2"}


def test_the_lock_of_a_killed_process_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").touch()
    with atomic_file(tmp_path / "out") as temporary:
        temporary.write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_process_left_that_nobody_has_waited_for_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    (tmp_path / f".out.{ended.pid}.{ended.pid}.00000000.partial").touch()
    with atomic_file(tmp_path / "out") as temporary:
        temporary.write_bytes(b"1")
    ended.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
