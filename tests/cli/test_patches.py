"""The verbs about patches: apply, revert, verify."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from surgery.patch import load_patch
from tests.cli.conftest import Call
from tests.support.folders import contents

TEXT_ENCODER = Path("text_encoder", "model.safetensors")


@pytest.fixture
def edited(surgery: Call, patch: Path, tiny_pipeline: Path, tmp_path: Path) -> Path:
    """The tiny pipeline with the patch in it."""
    assert surgery("apply", patch, tiny_pipeline, "-o", tmp_path / "edited").code == 0
    return tmp_path / "edited"


def test_apply_says_what_changed(surgery: Call, patch: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    done = surgery("apply", patch, tiny_pipeline, "-o", tmp_path / "out")
    assert done.code == 0
    assert "weights of 1 tensors changed, bit for bit as the patch records" in done.out
    assert contents(tmp_path / "out").keys() == contents(tiny_pipeline).keys()


def test_apply_at_strength_0_changes_no_byte(
    surgery: Call, patch: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    done = surgery("apply", patch, tiny_pipeline, "-o", tmp_path / "out", "--strength", 0)
    assert done.code == 0
    assert "0 weights of 1 tensors changed, at strength 0" in done.out
    assert contents(tmp_path / "out") == contents(tiny_pipeline)


def test_apply_replaces_nothing_without_being_told(
    surgery: Call, patch: Path, tiny_pipeline: Path, edited: Path
) -> None:
    done = surgery("apply", patch, tiny_pipeline, "-o", edited)
    assert done.code == 1
    assert "exists already" in done.err
    assert surgery("apply", patch, tiny_pipeline, "-o", edited, "--overwrite").code == 0


def test_apply_to_what_has_the_patch_already_is_1(
    surgery: Call, patch: Path, edited: Path, tmp_path: Path
) -> None:
    assert surgery("apply", patch, edited, "-o", tmp_path / "twice").code == 1
    assert not (tmp_path / "twice").exists()


def test_apply_to_a_fine_tune_is_asked_for_and_claims_no_outcome(
    surgery: Call, patch: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_pipeline, other)
    weights = load_file(other / TEXT_ENCODER)
    name = next(iter(load_patch(patch).changes)).removeprefix("text_encoder/")
    weights[name] = weights[name] * 1.25
    save_file(weights, other / TEXT_ENCODER, {"format": "pt"})
    refused = surgery("apply", patch, other, "-o", tmp_path / "out")
    assert (refused.code, "--allow-other-base" in refused.err) == (1, True)
    done = surgery("apply", patch, other, "-o", tmp_path / "out", "--allow-other-base")
    assert done.code == 0
    assert "1 of them on another base, where no outcome is recorded" in done.out
    assert "not claimed" in done.err


def test_revert_by_the_base_gives_its_bytes_back(
    surgery: Call, patch: Path, tiny_pipeline: Path, edited: Path, tmp_path: Path
) -> None:
    done = surgery("revert", patch, edited, "-o", tmp_path / "back", "--base", tiny_pipeline)
    assert (done.code, done.out) == (0, f"{tmp_path / 'back'}\n")
    assert contents(tmp_path / "back") == contents(tiny_pipeline)


def test_revert_by_the_undo_file_gives_the_bytes_back(
    surgery: Call, patch: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    undo = tmp_path / "undo.safetensors"
    assert surgery("apply", patch, tiny_pipeline, "-o", tmp_path / "out", "--undo", undo).code == 0
    assert surgery("revert", patch, tmp_path / "out", "-o", tmp_path / "back", "--undo", undo).code == 0
    assert contents(tmp_path / "back") == contents(tiny_pipeline)


def test_revert_wants_at_most_one_source_of_the_old_bits(surgery: Call) -> None:
    options = ("--undo", "u", "--base", "b")
    assert surgery("revert", "patch", "edited", "-o", "out", *options).code == 2


def test_revert_of_a_patch_that_adds_asks_for_the_old_bits(
    surgery: Call, patch: Path, edited: Path, tmp_path: Path
) -> None:
    done = surgery("revert", patch, edited, "-o", tmp_path / "back")
    assert done.code == 1
    assert "rounding cannot be undone" in done.err


def test_verify_is_0_where_the_patch_is_in_and_3_where_it_is_not(
    surgery: Call, patch: Path, tiny_pipeline: Path, edited: Path
) -> None:
    assert surgery("verify", patch, edited).code == 0
    assert surgery("verify", patch, tiny_pipeline).code == 3
    assert surgery("verify", patch, tiny_pipeline, "--expect", "before").code == 0
    assert surgery("verify", patch, edited, "--expect", "before").code == 3


def test_verify_tells_each_tensor(surgery: Call, patch: Path, edited: Path) -> None:
    lines = surgery("verify", patch, edited).out.splitlines()
    assert lines[0].split() == ["after", "text_encoder/text_model.encoder.layers.3.mlp.fc2.weight"]
    assert lines[-1] == f"{edited}: the patch is in it"


def test_verify_as_json_keeps_its_exit_code(surgery: Call, patch: Path, tiny_pipeline: Path) -> None:
    done = surgery("verify", patch, tiny_pipeline, "--json")
    assert done.code == 3
    assert done.json["state"] == "before"
    assert set(done.json["untouched"]) == {"text_encoder", "unet", "vae"}


def test_verify_of_a_checkpoint_that_was_changed_elsewhere_is_3(
    surgery: Call, patch: Path, edited: Path
) -> None:
    path = edited / "unet" / "diffusion_pytorch_model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    done = surgery("verify", patch, edited)
    assert done.code == 3
    assert "neither" in done.out


@pytest.mark.parametrize("verb", ["apply", "revert", "verify"])
def test_a_file_that_is_no_patch_is_1(surgery: Call, tiny_pipeline: Path, tmp_path: Path, verb: str) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    options = {"apply": ["-o", tmp_path / "o"], "revert": ["-o", tmp_path / "o", "--base", tiny_pipeline]}
    for path in (torn, tmp_path / "none.safetensors"):
        done = surgery(verb, path, tiny_pipeline, *options.get(verb, []))
        assert done.code == 1
        assert path.name in done.err


def test_convert_goes_there_and_back(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    single, back = tmp_path / "tiny.safetensors", tmp_path / "back"
    there = surgery("convert", tiny_pipeline, "-o", single, "--to", "single")
    assert (there.code, there.out) == (0, f"{single}: 1034 tensors\n")
    assert surgery("convert", single, "-o", back).code == 0
    digests = [
        surgery("inspect", place, "--json").json["components"] for place in (tiny_pipeline, single, back)
    ]
    assert digests[0] == digests[1] == digests[2]


def test_convert_to_the_layout_it_has_is_refused(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.safetensors"
    assert surgery("convert", tiny_pipeline, "-o", single).code == 0
    again = surgery("convert", single, "-o", tmp_path / "out", "--to", "single")
    assert again.code == 2
    assert "is a single file already" in again.err
    done = surgery("convert", tiny_pipeline, "-o", tmp_path / "out", "--to", "folder")
    assert done.code == 1
    assert "is a folder already" in done.err


def test_convert_replaces_nothing_but_older_checkpoints(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    diary = tmp_path / "diary.safetensors"
    diary.write_text("mine")
    for options in ([], ["--overwrite"]):
        done = surgery("convert", tiny_pipeline, "-o", diary, *options)
        assert done.code == 1
        assert "is no safetensors file" in done.err
    assert diary.read_text() == "mine"
