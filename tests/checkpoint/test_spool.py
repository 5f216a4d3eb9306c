"""Tensors on the disk: the same values, outside the process's memory, and nothing left."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch

from surgery.checkpoint.spool import Spool
from tests.support.measure import anonymous_bytes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_what_is_kept_has_the_same_values(folder: Path, dtype: torch.dtype) -> None:
    spool = Spool()
    tensors = [torch.arange(size * 7).reshape(size, 7).to(dtype) for size in (3, 20_000, 30_001)]
    kept = [spool.keep(tensor) for tensor in tensors]
    del spool
    for tensor, other in zip(tensors, kept, strict=True):
        assert other.dtype == dtype
        assert torch.equal(tensor, other)
    assert list(folder.iterdir()) == []  # the file has no name


def test_a_slice_and_a_transposed_tensor_are_kept_as_they_read(folder: Path) -> None:
    whole = torch.randn(600, 500)
    assert torch.equal(Spool().keep(whole.T), whole.T)
    assert torch.equal(Spool().keep(whole[100:300, 50:]), whole[100:300, 50:])


def test_writing_to_what_is_kept_changes_nothing_else(folder: Path) -> None:
    spool = Spool()
    first, second = spool.keep(torch.zeros(50_000)), spool.keep(torch.ones(50_000))
    first += 5
    assert second.unique().tolist() == [1.0]


def test_many_kept_tensors_take_no_memory(folder: Path) -> None:
    spool, before = Spool(), anonymous_bytes()
    kept = [spool.keep(torch.full((4_000_000,), float(number))) for number in range(20)]  # 320 MB
    assert anonymous_bytes() - before < 100_000_000
    assert [float(tensor[-1]) for tensor in kept] == list(range(20))


def test_without_room_tensors_stay_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    tensor = torch.zeros(50_000)
    assert Spool().keep(tensor) is tensor


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_thousands_of_tensors_take_few_of_the_files_that_may_be_open(folder: Path) -> None:
    import resource

    spool = Spool()
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 40, allowed[1]))
    try:
        kept = [spool.keep(torch.full((40_000,), float(number))) for number in range(3000)]  # 480 MB
        assert (folder / "another").write_text("can be opened")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    assert [float(tensor[0]) for tensor in kept] == list(range(3000))
    assert [float(tensor[-1]) for tensor in kept] == list(range(3000))
