"""Copies keep every byte that was not asked to change."""

from functools import partial
from pathlib import Path

import pytest
import torch

from surgery.checkpoint import open_checkpoint, reader, write_checkpoint
from surgery.errors import CheckpointError, SurgeryError
from tests.support.folders import (
    CONV_NAME,
    FC2_NAME,
    TO_K_NAME,
    contents,
    small_weights,
    weight_file,
    write_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def test_nothing_replaced_gives_every_file_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(open_checkpoint(folder), tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(folder)


def test_files_larger_than_a_piece_are_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", 7)
    write_checkpoint(open_checkpoint(folder), tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(folder)


def test_a_replaced_tensor_changes_its_bytes_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    new = {name: torch.full(checkpoint.entry(name).shape, 2.0).half() for name in (CONV_NAME, TO_K_NAME)}
    write_checkpoint(checkpoint, tmp_path / "out", {name: partial(new.__getitem__, name) for name in new})
    written = open_checkpoint(tmp_path / "out")
    for name in checkpoint.tensors:
        expected = new.get(name, checkpoint.read(name))
        assert torch.equal(written.read(name), expected)
    before, after = contents(folder), contents(tmp_path / "out")
    assert [path for path in before if before[path] != after[path]] == [
        "unet/diffusion_pytorch_model.safetensors"
    ]
    header = open_checkpoint(folder).headers[weight_file(folder, "unet")].data_start
    file = "unet/diffusion_pytorch_model.safetensors"
    assert before[file][:header] == after[file][:header]
    changed = sum(old != new for old, new in zip(before[file], after[file], strict=True))
    assert 0 < changed <= sum(new[name].numel() * 2 for name in new)


@pytest.mark.parametrize("wrong", [torch.zeros(5, 3).half(), torch.zeros(3, 5)])
def test_another_shape_or_type_is_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, wrong: torch.Tensor
) -> None:
    with pytest.raises(CheckpointError, match="its replacement has"):
        write_checkpoint(open_checkpoint(folder), tmp_path / "out", {FC2_NAME: lambda: wrong})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_an_unknown_name_is_refused_with_the_nearest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Did you mean"):
        write_checkpoint(open_checkpoint(folder), tmp_path / "out", {FC2_NAME + "s": lambda: torch.zeros(1)})


@pytest.mark.parametrize("place", [".", "inner/out", ".."])
def test_an_output_that_meets_the_input_is_refused(folder: Path, place: str) -> None:
    before = contents(folder)
    with pytest.raises(CheckpointError, match="lie inside each other"):
        write_checkpoint(open_checkpoint(folder), folder / place, {}, overwrite=True)
    assert contents(folder) == before


def test_an_existing_output_is_kept_unless_asked(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_index.json").write_text("mine")
    with pytest.raises(SurgeryError, match="exists already"):
        write_checkpoint(checkpoint, tmp_path / "out", {})
    assert contents(tmp_path / "out") == {"model_index.json": b"mine"}
    write_checkpoint(checkpoint, tmp_path / "out", {}, overwrite=True)
    assert contents(tmp_path / "out") == contents(folder)


def test_links_are_followed_and_copied_as_files(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "blobs"
    elsewhere.mkdir()
    (folder / "unet").rename(elsewhere / "unet")
    for name in ("unet", "twin"):
        (folder / name).symlink_to(elsewhere / "unet", target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    write_checkpoint(open_checkpoint(folder), tmp_path / "out", {})
    assert weight_file(tmp_path / "out", "unet").read_bytes() == weight_file(folder, "unet").read_bytes()
    assert contents(tmp_path / "out" / "twin") == contents(elsewhere / "unet")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert not (tmp_path / "out" / "loop").exists()


@pytest.mark.parametrize("spelling", [".", "../base", "./x/.."])
def test_any_spelling_of_the_input_finds_the_touched_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    (folder / "x").mkdir()
    monkeypatch.chdir(folder)
    checkpoint = open_checkpoint(Path(spelling))
    new = torch.full((3, 5), 2.0).half()
    write_checkpoint(checkpoint, tmp_path / "out", {FC2_NAME: lambda: new})
    assert torch.equal(open_checkpoint(tmp_path / "out").read(FC2_NAME), new)


def test_a_touched_file_that_vanishes_is_noticed(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    (folder / "unet").rename(folder / "other")
    new = torch.full((3, 5), 2.0).half()
    with pytest.raises(CheckpointError, match="was not found again"):
        write_checkpoint(checkpoint, tmp_path / "out", {FC2_NAME: lambda: new, TO_K_NAME: lambda: new})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["chapter.tex", "config.json"])
def test_what_is_no_checkpoint_is_not_replaced_even_when_asked(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(CheckpointError, match="a folder of other files"):
        write_checkpoint(open_checkpoint(folder), tmp_path / "out", {}, overwrite=True)
    assert contents(tmp_path / "out") == {name: b"mine"}
