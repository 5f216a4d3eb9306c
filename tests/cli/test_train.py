"""The verb train."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.patch import load_patch
from surgery.study.wordless import looks_in
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
    assert "goes on from update 2" in again.err
    assert "update 2: loss" not in again.err  # nothing was left to do
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_is_averaged_and_mirrored_is_an_option_and_stands_in_the_patch(
    surgery: Call, folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    asked = ("--base", tiny_pipeline, "--rank", 2, "--batch", 2, "--steps", 2, "--held-out", 0)
    learned = {}
    for name, options in (("usual", ()), ("other", ("--average", 0, "--no-mirror"))):
        place = tmp_path / f"{name}.safetensors"
        assert surgery("train", folder, *asked, *options, "-o", place).code == 0
        (look,) = looks_in(load_patch(place))
        learned[name] = cast("Mapping[str, Any]", look["settings"])
    assert [(one["average"], one["mirrored"]) for one in learned.values()] == [(0.995, True), (0.0, False)]
    plain, other = (load_patch(tmp_path / f"{name}.safetensors") for name in learned)
    name = next(iter(plain.changes))
    first, second = (patch.terms[0].delta.materialise(name) for patch in (plain, other))
    assert not torch.equal(first, second)


def test_a_folder_without_pictures_is_refused_and_nothing_is_written(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = surgery("train", tmp_path / "empty", "--base", tiny_pipeline, "-o", tmp_path / "a.safetensors")
    assert done.code == 1
    assert "0 pictures can be read" in done.err
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    surgery: Call, folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    options = [
        "--base",
        str(tiny_pipeline),
        "--rank",
        "2",
        "--batch",
        "4",
        "--steps",
        "3",
        "--held-out",
        "0.3",
    ]
    options += ["--check-every", "2", "--threads", "1"]
    assert surgery("train", folder, *options, "-o", tmp_path / "one.safetensors").code == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    asked = ["-m", "surgery", "train", str(folder), *options, "-o", str(tmp_path / "two.safetensors")]
    done = subprocess.run([*launch, *asked], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("updates on 4 pictures") == 1
    one, two = (load_patch(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.changes == two.changes
    for name in one.changes:
        (first,), (second,) = ([term.delta.materialise(name) for term in patch.terms] for patch in (one, two))
        torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-5)
    lines = [
        json.loads(line)
        for line in (tmp_path / "two.safetensors.training" / "losses.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [2, 3]


def test_products_in_bfloat16_are_near_those_in_float32(
    surgery: Call, folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    options = ("--base", tiny_pipeline, "--rank", 2, "--batch", 2, "--steps", 2, "--held-out", 0, "--json")
    exact = surgery("train", folder, *options, "-o", tmp_path / "a.safetensors").json["losses"]
    half = surgery(
        "train", folder, *options, "--precision", "bfloat16", "-o", tmp_path / "b.safetensors"
    ).json["losses"]
    assert half != exact
    assert half == pytest.approx(exact, rel=2e-2)


def test_full_training_is_truncated_and_packed_as_constants(
    surgery: Call, folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    options = ("--base", tiny_pipeline, "--form", "full", "--batch", 2, "--steps", 1, "--held-out", 0)
    place, packed = tmp_path / "look.safetensors", tmp_path / "constants.safetensors"
    more = ("--truncate", 2, "--constants", packed, "--tolerance", 1, "--json", "-o", place)
    found = surgery("train", folder, *options, *more).json
    assert 0 < min(share for share in found["energies"].values() if share) <= 1
    assert 0 < found["constants_error"] < 1
    assert set(load_patch(place).changes) == {name for name, share in found["energies"].items() if share}
    assert packed.exists()
    narrow = surgery(
        "train", folder, *options, "--constants", tmp_path / "none", "--tolerance", 1e-6,
        "--work", f"{place}.training", "-o", tmp_path / "whole.safetensors",
    )  # fmt: skip
    assert (narrow.code, "expected at most" in narrow.err) == (1, True)
    assert (tmp_path / "whole.safetensors").exists()
    assert not (tmp_path / "none").exists()
    wrong = surgery("train", folder, "--base", tiny_pipeline, "--truncate", 2, "-o", tmp_path / "b")
    assert (wrong.code, "--truncate is about form full" in wrong.err) == (2, True)
