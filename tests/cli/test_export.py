"""The verbs about other programs: export, simulate and prove."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Places, Rescale
from surgery.patch import Term, load_patch, make_patch, patch_digest, save_patch
from tests.cli.conftest import Call
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, contents, small_weights, write_folder
from tests.support.patches import random_patch
from tests.support.tiny import FC2

BIAS = "text_encoder/text_model.encoder.layers.0.mlp.fc2.bias"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def edit(base: Path, tmp_path: Path) -> Path:
    """A patch of an MLP, a cross-attention and a convolution."""
    save_patch(random_patch(base), tmp_path / "patch.safetensors")
    return tmp_path / "patch.safetensors"


@pytest.fixture
def of_bias(base: Path, tmp_path: Path) -> Path:
    """A patch of a matrix and a bias, which no LoRA carries."""
    save_patch(random_patch(base, [FC2_NAME, BIAS]), tmp_path / "bias.safetensors")
    return tmp_path / "bias.safetensors"


@pytest.fixture
def lora(surgery: Call, base: Path, edit: Path, tmp_path: Path) -> Path:
    made = tmp_path / "lora.safetensors"
    assert surgery("export", edit, "--to", "universal-lora", "--base", base, "-o", made).code == 0
    return made


def test_a_lora_is_written_and_told(surgery: Call, base: Path, edit: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.safetensors"
    done = surgery("export", edit, "--to", "universal-lora", "--base", base, "-o", out)
    assert done.code == 0
    assert done.out.rstrip().endswith(
        f"3 tensors in 3 layers, {out.stat().st_size:,} bytes; every value as the patch makes it"
    )
    with safe_open(out, framework="pt") as file:
        record = json.loads(file.metadata()["sdpatch.export"])
    assert record["patch"] == patch_digest(load_patch(edit))


def test_a_merged_checkpoint_is_what_apply_writes(
    surgery: Call, base: Path, edit: Path, tmp_path: Path
) -> None:
    merged, edited = tmp_path / "merged", tmp_path / "edited"
    done = surgery("export", edit, "--to", "checkpoint", "--base", base, "-o", merged, "--json")
    assert done.code == 0
    assert done.json["exact"] is True
    assert surgery("apply", edit, base, "-o", edited).code == 0
    assert contents(merged) == contents(edited)


def test_an_existing_file_is_kept_unless_asked(surgery: Call, base: Path, edit: Path, lora: Path) -> None:
    before = lora.read_bytes()
    lora.write_bytes(b"mine")
    command = ("export", edit, "--to", "universal-lora", "--base", base, "-o", lora)
    done = surgery(*command)
    assert done.code == 1
    assert "exists already" in done.err
    assert lora.read_bytes() == b"mine"
    assert surgery(*command, "--overwrite").code == 0
    assert lora.read_bytes() == before


def test_what_a_target_cannot_carry_is_refused_unless_left_out(
    surgery: Call, base: Path, of_bias: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lora.safetensors"
    command = ("export", of_bias, "--to", "universal-lora", "--base", base, "-o", out)
    done = surgery(*command)
    assert done.code == 1
    assert BIAS in done.err
    assert not out.exists()
    done = surgery(*command, "--partial")
    assert done.code == 0
    assert f"left out  {BIAS}: " in done.out


def test_an_approximation_states_how_far_off_it_is(
    surgery: Call, base: Path, edit: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lora.safetensors"
    done = surgery("export", edit, "--to", "universal-lora", "--base", base, "-o", out, "--rank", 1)
    assert done.code == 0
    assert "off by at most" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "comfyui"], "there is no target 'comfyui'. Did you mean 'comfy'?"),
        (["--to", "comfy", "--rank", "4"], "takes no --rank; that is for universal-lora"),
        (["--to", "variant", "--variant", "a/b"], "cannot name a variant"),
    ],
)
def test_targets_and_options_that_are_none_are_refused(
    surgery: Call, base: Path, edit: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = surgery("export", edit, *arguments, "--base", base, "-o", tmp_path / "out")
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{edit}", "--base", "{base}", "-o", "out"],  # no target
        ["export", "{edit}", "--to", "comfy", "--base", "{base}"],  # no output
        ["export", "{edit}", "--to", "comfy", "-o", "out"],  # no base, and none in the patch
        ["export", "{edit}", "--to", "checkpoint", "--layout", "flat", "--base", "{base}", "-o", "out"],
        ["simulate", "diffusers"],
        ["prove"],
        ["prove", "{edit}"],  # no base either
    ],
    ids=" ".join,
)
def test_wrong_usage_gives_2(
    surgery: Call, base: Path, edit: Path, tmp_path: Path, arguments: list[str]
) -> None:
    done = surgery(*(word.format(edit=edit, base=base) for word in arguments))
    assert done.code == 2
    assert done.out == ""


def test_a_lora_is_whole_in_every_loader_by_its_rules(
    surgery: Call, base: Path, edit: Path, lora: Path
) -> None:
    for loader in ("diffusers", "diffusers-0.35", "comfyui", "a1111", "forge", "sd.cpp", "kohya"):
        done = surgery("simulate", loader, lora, "--base", base, "--patch", edit)
        assert done.code == 0, (loader, done.out)
        assert "all of the edit is applied; 3 of 3 weights as the patch makes them" in done.out


def test_a_patch_that_is_a_lora_can_be_asked_about_itself(surgery: Call, base: Path, edit: Path) -> None:
    done = surgery("simulate", "comfyui", edit, "--base", base, "--json")
    assert done.code == 0
    assert done.json["whole"] is True
    assert done.json["weights"].keys() == {FC2_NAME, TO_K_NAME, CONV_NAME}


def test_an_edit_that_a_loader_loses_gives_3(
    surgery: Call, base: Path, of_bias: Path, tmp_path: Path
) -> None:
    out = tmp_path / "full.safetensors"
    assert surgery("export", of_bias, "--to", "lycoris", "--base", base, "-o", out).code == 0
    assert surgery("simulate", "comfyui", out, "--base", base).code == 0
    refused = surgery("simulate", "diffusers", out, "--base", base)
    assert refused.code == 3
    assert "the whole file is refused" in refused.out
    dropped = surgery("simulate", "kohya", out, "--base", base, "--json")
    assert dropped.code == 3
    assert dropped.json["lost"] == {FC2_NAME: "dropped", BIAS: "dropped"}


def test_a_mask_is_named_and_so_is_what_carries_it(surgery: Call, base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    places = Places("elements", checkpoint.shapes[TO_K_NAME], torch.tensor([0, 3]))
    mask = make_patch(
        [Term(delta=Delta({TO_K_NAME: Rescale(places, torch.tensor(0.0))}), source="cad")], checkpoint
    )
    save_patch(mask, tmp_path / "mask.safetensors")
    done = surgery("simulate", "a1111", tmp_path / "mask.safetensors")
    assert done.code == 1
    assert "is a patch of masks" in done.err
    assert "opposite sign" in done.err
    for target in ("universal-lora", "lycoris", "comfy"):
        out = tmp_path / f"{target}.safetensors"
        made = surgery("export", tmp_path / "mask.safetensors", "--to", target, "--base", base, "-o", out)
        assert made.code == 0
        # ComfyUI sets weights; the others add, at whatever strength
        assert ("opposite sign" in made.out) == (target != "comfy")
    told = surgery("simulate", "a1111", tmp_path / "lycoris.safetensors")
    assert told.code == 0
    assert "1 tensors are masked, by differences: load the file at strength 1" in told.out


def test_an_unknown_loader_is_answered_with_the_nearest(surgery: Call, lora: Path) -> None:
    done = surgery("simulate", "comfy", lora)
    assert done.code == 1
    assert "no loader 'comfy' is known. Did you mean 'comfyui'?" in done.err
    done = surgery("prove", lora, "--with", "difusers", "--base", "anything", "--patch", lora)
    assert done.code == 1


def test_another_patch_than_the_file_s_is_refused(
    surgery: Call, base: Path, of_bias: Path, lora: Path
) -> None:
    done = surgery("simulate", "comfyui", lora, "--base", base, "--patch", of_bias)
    assert done.code == 1
    assert "was made of the patch" in done.err


@pytest.fixture
def real(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A patch of the tiny pipeline, which diffusers can load, and the LoRA of it."""
    patch, made = tmp_path / "real.safetensors", tmp_path / "real-lora.safetensors"
    save_patch(random_patch(tiny_pipeline, [FC2.format(3), FC2.format(4)]), patch)
    done = surgery("export", patch, "--to", "universal-lora", "--base", tiny_pipeline, "-o", made)
    assert done.code == 0
    return patch, made


def test_the_real_loader_proves_the_lora(surgery: Call, tiny_pipeline: Path, real: tuple[Path, Path]) -> None:
    patch, made = real
    done = surgery("prove", made, "--base", tiny_pipeline, "--patch", patch)
    assert done.code == 0
    assert "2 of 2 weights as the patch makes them, 0 others changed" in done.out
    itself = surgery("prove", patch, "--base", tiny_pipeline, "--json")
    assert itself.code == 3  # its own factors come near, but round differently
    assert itself.json["strays"] == []


def test_a_file_that_does_less_than_the_patch_is_no_proof(
    surgery: Call, tiny_pipeline: Path, real: tuple[Path, Path], tmp_path: Path
) -> None:
    less, smaller = tmp_path / "less.safetensors", tmp_path / "less-lora.safetensors"
    save_patch(random_patch(tiny_pipeline, [FC2.format(3)]), less)
    done = surgery("export", less, "--to", "universal-lora", "--base", tiny_pipeline, "-o", smaller)
    assert done.code == 0
    done = surgery("prove", smaller, "--base", tiny_pipeline, "--patch", real[0])
    assert done.code == 3
    assert "1 of 2 weights as the patch makes them" in done.out
    more = surgery("prove", real[1], "--base", tiny_pipeline, "--patch", less)
    assert more.code == 3
    assert f"stray    {FC2.format(4)}: the patch leaves it alone" in more.out


def test_a_file_that_the_real_loader_refuses_is_no_proof(
    surgery: Call, tiny_pipeline: Path, real: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "full.safetensors"
    assert surgery("export", real[0], "--to", "lycoris", "--base", tiny_pipeline, "-o", out).code == 0
    done = surgery("prove", out, "--base", tiny_pipeline, "--patch", real[0], "--json")
    assert done.code == 3
    assert done.json["refused"].startswith("ValueError")
