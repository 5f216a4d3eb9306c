"""The verbs that carry out a recipe and draw: plan, run, sample."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from surgery.patch import load_patch
from tests.cli.conftest import Call
from tests.support.folders import contents

RECIPE = """\
surgery: 1
title: A tiny run
base: {base}
edits:
  - emcid:
      concepts:
        - {{source: cat, destination: pizza}}
        - {{source: dog, destination: fish}}
        - {{source: doctor, kind: forget}}
      offsets: {{mode: text, steps: 2, batch: 2}}
      update: {{layers: 3-4}}
      corpus: {{captions: captions.txt, shrinkage: 0.5}}
sample: {{prompts: [a photo of cat], seeds: 1, steps: 1}}
"""
FILES = {"patch.safetensors", "lora.safetensors", "run.json", "sheet.png", "checkpoint/model_index.json"}


@pytest.fixture
def recipe(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A recipe for the tiny pipeline that runs in seconds."""
    words = ("cat", "dog", "fish", "pizza", "doctor", "female", "male")
    captions = [f"a {kind} of {word}" for kind in ("photo", "picture", "image") for word in words]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(base=tiny_pipeline))
    return path


def test_plan_tells_steps_sites_and_batches(surgery: Call, recipe: Path) -> None:
    [step] = surgery("plan", recipe, "--json").json["steps"]
    assert step["method"] == "emcid"
    assert [site.split(".")[3] for site in step["sites"]] == ["3", "4"]
    assert step["parameters"] == 2 * 32 * 128
    assert step["batches"] == [2, 1]
    assert "3 concepts in 2 batches" in surgery("plan", recipe).out


def test_a_plan_changes_with_what_changes_the_result_only(surgery: Call, recipe: Path) -> None:
    identity = surgery("plan", recipe, "--json").json["identity"]
    recipe.write_text("# a comment\n" + recipe.read_text())
    assert surgery("plan", recipe, "--json").json["identity"] == identity
    assert surgery("plan", recipe, "--set", "seed=1", "--json").json["identity"] != identity


def test_plan_of_a_layer_that_the_base_lacks_is_1(surgery: Call, recipe: Path) -> None:
    done = surgery("plan", recipe, "--set", "edits[0].emcid.update.layers=3-40")
    assert done.code == 1
    assert "layers" in done.err


def test_run_writes_everything_that_the_recipe_asks_for(surgery: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = surgery("run", recipe, "-o", out, "--device", "cpu", "--threads", 1)
    assert (done.code, done.out) == (0, f"{out}\n")
    assert set(contents(out)) >= FILES
    assert surgery("verify", out / "patch.safetensors", out / "checkpoint").code == 0
    assert len(load_patch(out / "patch.safetensors").changes) == 2


def test_run_twice_gives_the_same_patch_and_needs_overwrite(
    surgery: Call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert surgery("run", recipe, "-o", out, "--json").json["plan"]["steps"]
    first = (out / "patch.safetensors").read_bytes()
    done = surgery("run", recipe, "-o", out)
    assert done.code == 1
    assert "--overwrite" in done.err
    assert surgery("run", recipe, "-o", out, "--overwrite").code == 0
    assert (out / "patch.safetensors").read_bytes() == first


def test_run_with_a_bad_recipe_or_device_writes_nothing(surgery: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert surgery("run", recipe, "-o", out, "--set", "sead=1").code == 1
    done = surgery("run", recipe, "-o", out, "--device", "cuda:99")
    assert (done.code, out.exists()) == (1, False)
    assert "there is no device 'cuda:99' here" in done.err


def test_an_interrupted_run_ends_with_130_and_leaves_nothing_that_looks_finished(
    recipe: Path, tmp_path: Path
) -> None:
    endless = [
        "--set",
        "edits[0].emcid.offsets.steps=100000000",
        "--set",
        "edits[0].emcid.offsets.patience=null",
    ]
    command = [sys.executable, "-m", "surgery", "run", str(recipe), "-o", str(tmp_path / "out"), *endless]
    # a background job of a shell ignores interrupts, and so would its child
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with started as process:
        assert process.stderr is not None
        while "key statistics" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("surgery: interrupted\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cache", "unfinished.json"}


def test_sample_draws_one_row_for_each_prompt(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    options = ("--steps", 1, "--count", 2, "--batch", 1)
    assert surgery("sample", tiny_pipeline, "--prompt", "cat", *options, "-o", small).code == 0
    two = ("--prompt", "cat", "--prompt", "dog")
    assert surgery("sample", tiny_pipeline, *two, *options, "-o", large).out == f"{large}\n"
    with Image.open(small) as one_row, Image.open(large) as two_rows:
        assert one_row.width == two_rows.width
        assert one_row.height < two_rows.height


def test_sample_with_a_patch_shows_before_and_after(
    surgery: Call, tiny_pipeline: Path, patch: Path, tmp_path: Path
) -> None:
    options = ("--prompt", "cat", "--steps", 1, "--count", 1)
    assert surgery("sample", tiny_pipeline, *options, "-o", tmp_path / "one.png").code == 0
    assert surgery("sample", tiny_pipeline, *options, "--patch", patch, "-o", tmp_path / "two.png").code == 0
    with Image.open(tmp_path / "one.png") as alone, Image.open(tmp_path / "two.png") as both:
        assert alone.width < both.width


def test_sample_replaces_nothing_without_being_told(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mine.png"
    place.write_text("mine")
    done = surgery("sample", tiny_pipeline, "--prompt", "cat", "-o", place)
    assert (done.code, place.read_text()) == (1, "mine")


def test_sample_writes_png_and_refuses_other_endings(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    done = surgery("sample", tiny_pipeline, "--prompt", "cat", "-o", tmp_path / "a.jpg")
    assert (done.code, "PNG" in done.err) == (2, True)
    assert not list(tmp_path.glob("a*"))


def test_sample_draws_a_fine_tune_with_the_patch_when_told(
    surgery: Call, tiny_pipeline: Path, patch: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_pipeline, tuned)
    weights = tuned / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    options = ("--prompt", "cat", "--steps", 1, "--count", 1, "--patch", patch)
    refused = surgery("sample", tuned, *options, "-o", tmp_path / "a.png")
    assert (refused.code, "allow another base" in refused.err) == (1, True)
    assert surgery("sample", tuned, *options, "--allow-other-base", "-o", tmp_path / "a.png").code == 0


def test_sample_of_another_base_without_a_patch_is_a_wrong_call(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    options = ("--prompt", "cat", "--allow-other-base", "-o", tmp_path / "a.png")
    done = surgery("sample", tiny_pipeline, *options)
    assert (done.code, "--patch" in done.err) == (2, True)


def test_sample_with_a_strength_and_no_patch_is_a_wrong_call(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    done = surgery("sample", tiny_pipeline, "--prompt", "cat", "--strength", 2, "-o", tmp_path / "a.png")
    assert (done.code, "--patch" in done.err) == (2, True)
