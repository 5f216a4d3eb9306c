"""Training from a folder to a patch: what is written beside it, what the patch says, and where it warns."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.errors import SurgeryError
from surgery.export import export_patch, prove_file
from surgery.export.loaders import simulate_file
from surgery.methods.null_text import TrainSettings
from surgery.patch import (
    apply_patch,
    compose_patches,
    describe_patch,
    load_patch,
    revert_patch,
    save_patch,
    verify_patch,
)
from surgery.study import sample_sheet
from surgery.study.look import train_look
from surgery.study.wordless import looks_in, warn_of_prompts
from tests.support.folders import contents
from tests.support.patches import random_patch
from tests.support.tiny import FC2

QUICK = TrainSettings(
    rank=2, steps=2, batch=2, micro_batch=2, learning_rate=1e-2, check_every=1, held_out=0.3, average=0.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(place / f"{number}.png")
    (place / "broken.png").write_bytes(b"no picture")
    return place


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, folder: Path, tiny_pipeline: Path) -> Path:
    place = tmp_path_factory.mktemp("out") / "look.safetensors"
    found = train_look(tiny_pipeline, folder, place, QUICK)
    assert [finding.subject for finding in found.findings] == ["broken.png"]
    assert "2 updates on 4 pictures; held-out loss" in next(found.lines())
    return place


def test_a_sheet_and_a_line_of_losses_come_with_every_look(learned: Path) -> None:
    beside = learned.with_name("look.safetensors.training")
    lines = [json.loads(line) for line in (beside / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["held_out"] > 0 and line["loss"] > 0 for line in lines)
    for step in (1, 2):
        with Image.open(beside / f"sheet-{step:06d}.png") as sheet:
            assert min(sheet.size) > 100


def test_the_patch_is_a_lora_that_says_how_to_draw_with_it(
    learned: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    patch = load_patch(learned)
    told = patch.provenance["null_text"]
    assert isinstance(told, dict)
    assert (told["context"], told["base_strength"], told["concept_weight"]) == ("", 0.0, 2.5)
    assert {name.split("/")[0] for name in patch.changes} == {"unet"}
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    assert verify_patch(patch, tmp_path / "edited").word == "after"
    revert_patch(patch, tmp_path / "edited", tmp_path / "back", base=tiny_pipeline)
    assert contents(tmp_path / "back") == contents(tiny_pipeline)
    export_patch(patch, tiny_pipeline, tmp_path / "lora.safetensors", to="universal-lora")
    proof = prove_file(tmp_path / "lora.safetensors", tiny_pipeline, learned)
    assert all(proof.tensors.values())


@pytest.mark.parametrize("family", ["tiny_pipeline", "tiny_xl"])
@pytest.mark.parametrize(("form", "truncate"), [("lora", None), ("full", 2)])
def test_what_is_trained_is_a_lora_file_in_every_family(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, family: str, form: Any, truncate: int | None
) -> None:
    base: Path = request.getfixturevalue(family)
    place = tmp_path / "look.safetensors"
    settings = replace(QUICK, steps=1, form=form, held_out=0.0)
    found = train_look(base, folder, place, settings, truncate=truncate)
    assert describe_patch(load_patch(place))["layout"] == "lora"
    assert "the patch is a LoRA file as it is" in list(found.lines())
    assert not any(name.startswith(("unet/conv_in", "unet/time_embedding")) for name in found.patch.changes)
    if truncate is not None:
        assert found.energies["unet/conv_in.weight"] == 0.0
    # but for InvokeAI, which knows families by the widths of real ones
    for loader in ("diffusers", "diffusers-0.35", "comfyui", "a1111", "forge", "sd.cpp", "kohya"):
        assert simulate_file(loader, place).lost == {}, loader


def test_another_training_in_the_same_folder_is_told(
    folder: Path, tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, said in ((0, False), (0, False), (1, True)):
        caplog.clear()
        settings = replace(QUICK, steps=1, seed=seed)
        train_look(tiny_pipeline, folder, tmp_path / "a.safetensors", settings, overwrite=True)
        assert ("holds another training" in caplog.text) == said


def test_composed_looks_and_applied_ones_are_warned_of_too(
    learned: Path, tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.safetensors"
    save_patch(random_patch(tiny_pipeline, [FC2.format(3)]), other)
    both = compose_patches([load_patch(learned), load_patch(other)], tiny_pipeline)
    assert [look["context"] for look in looks_in(both)] == [""]
    warn_of_prompts(load_patch(other), "other")
    assert not caplog.text
    warn_of_prompts(both, "both")
    assert "both was learned without words" in caplog.text


def test_a_prompt_without_generalised_guidance_is_warned_of(
    learned: Path, tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sample_sheet(tiny_pipeline, ["a cat"], patch=learned, seeds=[0], steps=1)
    assert "learned without words" in caplog.text


def test_the_work_folder_is_neither_among_the_pictures_nor_in_the_checkpoint(
    folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    for place in (folder / "work", tiny_pipeline, tiny_pipeline / "unet"):
        with pytest.raises(SurgeryError):
            train_look(tiny_pipeline, folder, tmp_path / "a.safetensors", QUICK, work=place)
    assert not (folder / "work").exists()


def test_losses_are_those_of_one_run(folder: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    train_look(tiny_pipeline, folder, tmp_path / "a.safetensors", QUICK)
    again = replace(QUICK, seed=1, steps=3, check_every=3)
    train_look(tiny_pipeline, folder, tmp_path / "a.safetensors", again, overwrite=True)
    lines = (tmp_path / "a.safetensors.training" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3]
