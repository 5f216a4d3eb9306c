"""The verb train."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(place / f"{number}.png")
    return place


def test_train_goes_on_where_it_was_and_prints_what_it_did(
    surgery: Call, folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    options = ("--base", tiny_pipeline, "--rank", 2, "--batch", 2, "--check-every", 1, "--held-out", 0.3)
    first = surgery("train", folder, *options, "--steps", 2, "-o", tmp_path / "a.safetensors", "--json")
    assert first.code == 0
    assert first.json["steps"] == 2
    again = surgery(
        "train", folder, *options, "--steps", 2, "-o", tmp_path / "b.safetensors",
        "--work", tmp_path / "a.safetensors.training",
    )  # fmt: skip
    assert again.code == 0
    assert "2 updates on 4 pictures" in again.out
    assert "update" not in again.err  # nothing was left to do
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_folder_without_pictures_is_refused_and_nothing_is_written(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = surgery("train", tmp_path / "empty", "--base", tiny_pipeline, "-o", tmp_path / "a.safetensors")
    assert done.code == 1
    assert "0 pictures can be read" in done.err
    assert not (tmp_path / "a.safetensors").exists()
