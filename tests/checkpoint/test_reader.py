"""Tensors are read whole, by rows and in blocks; opening a checkpoint reads none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.header import TensorEntry, open_header
from surgery.checkpoint.reader import read_blocks, read_chunks, read_rows, read_tensor
from surgery.errors import CheckpointError, SurgeryError
from tests.support.folders import TO_K_NAME, small_weights, weight_file, write_folder
from tests.support.measure import bytes_read

MATRIX = torch.arange(35, dtype=torch.float32).reshape(7, 5)


@pytest.fixture
def entry(tmp_path: Path) -> TensorEntry:
    save_file({"before": torch.zeros(3), "m": MATRIX, "z": torch.ones(9)}, tmp_path / "x")
    return next(e for e in open_header(tmp_path / "x", SurgeryError).entries if e.key == "m")


def test_rows_are_those_of_the_tensor(entry: TensorEntry) -> None:
    assert torch.equal(read_rows(entry, 2, 5), MATRIX[2:5])
    flipped = replace(entry, transposed=True, shape=(5, 7))
    assert torch.equal(read_rows(flipped, 1, 3), MATRIX.T[1:3])


@pytest.mark.parametrize("block_bytes", [1, 20, 50, 10**6])
def test_blocks_put_together_are_the_tensor(entry: TensorEntry, block_bytes: int) -> None:
    blocks = list(read_blocks(entry, block_bytes))
    assert [start for start, _ in blocks] == list(range(0, 7, len(blocks[0][1])))
    assert torch.equal(torch.cat([block for _, block in blocks]), MATRIX)
    flipped = replace(entry, transposed=True, shape=(5, 7))
    assert torch.equal(torch.cat([block for _, block in read_blocks(flipped, block_bytes)]), MATRIX.T)


def test_a_scalar_and_an_empty_tensor_have_their_blocks(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(7.0), "none": torch.zeros(0, 3)}, tmp_path / "x")
    entries = {e.key: e for e in open_header(tmp_path / "x", SurgeryError).entries}
    assert [(start, float(block)) for start, block in read_blocks(entries["scalar"])] == [(0, 7.0)]
    assert list(read_blocks(entries["none"])) == []
    assert read_tensor(entries["none"]).shape == (0, 3)
    assert list(read_chunks(tmp_path / "x", 5, 5)) == []


def rewritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replaced(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.with_name("other").touch()  # so that the new file is not given the number of the old one
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [rewritten, replaced, cut_off])
def test_a_file_that_changes_after_it_was_opened_is_noticed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = write_folder(tmp_path / "base", small_weights())
    opened = open_checkpoint(folder)
    change(weight_file(folder, "unet"))
    with pytest.raises(CheckpointError, match="is not what it was when its header was read"):
        opened.read(TO_K_NAME)
    with pytest.raises(CheckpointError, match="is not what it was"):
        opened.fingerprint()


def test_a_file_that_is_gone_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", small_weights())
    opened = open_checkpoint(folder)
    weight_file(folder, "unet").unlink()
    with pytest.raises(CheckpointError, match="cannot read .*No such file"):
        opened.read(TO_K_NAME)


def test_opening_a_checkpoint_reads_its_headers_alone(tmp_path: Path) -> None:
    weights = small_weights()
    weights["unet"]["conv_in.weight"] = torch.zeros(2048, 1024)  # 8 MB
    folder = write_folder(tmp_path / "base", weights)
    with bytes_read() as whole:
        weight_file(folder, "unet").read_bytes()
    with bytes_read() as opening:
        opened = open_checkpoint(folder)
        assert opened.shapes["unet/conv_in.weight"] == (2048, 1024)
        assert opened.architecture == "stable-diffusion-v1"
    assert whole.count > 8_000_000
    assert opening.count < 20_000
