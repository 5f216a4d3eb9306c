"""Drawing as a recipe of guidance says."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image

from surgery.patch import save_patch
from tests.cli.conftest import Call
from tests.guidance.conftest import patch_of

QUICK = {"seeds": 2, "steps": 2}


@pytest.fixture(scope="module")
def look(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("looks") / "look.safetensors"
    save_patch(patch_of(tiny_pipeline, 1), path)
    return path


def written(folder: Path, base: Path, guide: Mapping[str, object], **sample: object) -> Path:
    path = folder / "guide.yaml"
    quick = {"steps": 2} if "scaling_concept" in guide else QUICK
    whole = {"surgery": 1, "base": str(base), "guide": guide, "sample": {**quick, **sample}}
    path.write_text(yaml.safe_dump(whole))
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of both groups of a sheet of two columns, without headings and labels."""
    whole = pixels(path)
    cell, gap, between, margin = 128, 6, 28, 16
    width = 2 * cell + gap
    right = whole.shape[1] - margin - width
    left = right - between - width
    rows = slice(whole.shape[0] - margin - cell, whole.shape[0] - margin)
    return whole[rows, left : left + width], whole[rows, right : right + width]


def test_a_patch_guides_without_words_and_beside_a_prompt(
    surgery: Call, tiny_pipeline: Path, look: Path, tmp_path: Path
) -> None:
    recipe = written(tmp_path, tiny_pipeline, {"gcfg": {"concepts": [{"patch": str(look)}]}})
    assert "control_weight to 0" in surgery("sample", "--guide", recipe, "-o", tmp_path / "a.png").err
    told = ("--set", "guide.gcfg.control_weight=0", "-o", tmp_path / "a.png")
    assert surgery("sample", "--guide", recipe, *told).out == f"{tmp_path / 'a.png'}\n"
    words = ("--prompt", "a cat", "--prompt", "a dog", "-o", tmp_path / "b.png")
    assert surgery("sample", "--guide", recipe, *words).code == 0
    one, two = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert one.shape[1] == two.shape[1]
    assert one.shape[0] < two.shape[0]


def test_with_weights_of_nothing_a_patch_changes_no_picture(
    surgery: Call, tiny_pipeline: Path, look: Path, tmp_path: Path
) -> None:
    """Both groups of the sheet are then drawn from the base without words."""
    concept = {"patch": str(look), "weight": 0.0}
    recipe = written(tmp_path, tiny_pipeline, {"gcfg": {"concepts": [concept], "control_weight": 0.0}})
    assert surgery("sample", "--guide", recipe, "-o", tmp_path / "same.png").code == 0
    changed = ("--set", "guide.gcfg.concepts[0].weight=2.5", "-o", tmp_path / "other.png")
    assert surgery("sample", "--guide", recipe, *changed).code == 0
    same, other = halves(tmp_path / "same.png"), halves(tmp_path / "other.png")
    assert (same[0] == same[1]).all()
    assert (same[0] == other[0]).all()
    assert (other[0] != other[1]).any()


def test_subjects_are_found_or_named(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guide = {"concept_diffusion": {"subjects": {"two of them": ["a cat", "a dog"]}}}
    recipe = written(tmp_path, tiny_pipeline, guide, prompts=["two of them", "a cat and a dog", "a cat"])
    assert surgery("sample", "--guide", recipe, "-o", tmp_path / "a.png").code == 0
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in warned if "subject" in text] == [
        "'a cat': only 'a cat' was found; guidance by subjects needs two to tell apart. Name them in the "
        "recipe's 'subjects'."
    ]


def test_a_finder_that_is_not_there_is_named(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    guide = {"concept_diffusion": {"finder": "no_such_pipeline"}}
    recipe = written(tmp_path, tiny_pipeline, guide, prompts=["a cat and a dog"])
    done = surgery("sample", "--guide", recipe, "-o", tmp_path / "a.png")
    assert done.code == 1
    assert "finder 'no_such_pipeline'" in done.err


def test_pictures_are_scaled_at_every_scale(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 32), "red").save(tmp_path / "a.png")
    guide = {"scaling_concept": {"concept": "cat", "images": ["a.png"], "scales": [0, 1, 3], "renoise": 0}}
    recipe = written(tmp_path, tiny_pipeline, guide)
    assert surgery("sample", "--guide", recipe, "-o", tmp_path / "three.png").code == 0
    fewer = ("--set", "guide.scaling_concept.scales=[3]", "-o", tmp_path / "one.png")
    assert surgery("sample", "--guide", recipe, *fewer).code == 0
    assert pixels(tmp_path / "three.png").shape[1] > pixels(tmp_path / "one.png").shape[1]
    prompted = surgery("sample", "--guide", recipe, "--prompt", "a cat", "-o", tmp_path / "c.png")
    assert "along their own paths" in prompted.err


def test_a_guide_cannot_overwrite_what_it_reads(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    recipe = written(tmp_path, tiny_pipeline, {"scaling_concept": {"concept": "cat", "images": ["a.png"]}})
    done = surgery("sample", "--guide", recipe, "-o", tmp_path / "a.png", "--overwrite")
    assert (done.code, "this command uses too" in done.err) == (1, True)
    assert pixels(tmp_path / "a.png").shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        (["--patch", "x", "--guidance", "2"], "--guidance, --patch: the guide's recipe says that"),
        (["--strength", "2"], "--strength: the guide's recipe says that"),
    ],
)
def test_what_the_recipe_says_is_not_said_twice(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path, asked: list[str], fault: str
) -> None:
    recipe = written(tmp_path, tiny_pipeline, {"concept_diffusion": {}})
    done = surgery("sample", "--guide", recipe, *asked, "-o", tmp_path / "a.png")
    assert (done.code, fault in done.err) == (2, True)


def test_without_a_guide_a_checkpoint_and_a_prompt_are_needed(surgery: Call, tmp_path: Path) -> None:
    done = surgery("sample", "-o", tmp_path / "a.png")
    assert (done.code, "or a recipe with --guide" in done.err) == (2, True)
    done = surgery("sample", "pocket-sd", "--prompt", "a", "--set", "a=1", "-o", tmp_path / "a.png")
    assert (done.code, "name one with --guide" in done.err) == (2, True)


def test_check_knows_both_kinds(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, tiny_pipeline, {"concept_diffusion": {}})
    assert "good; draws from" in surgery("check", recipe).out
    assert surgery("check", recipe, "--json").json["guide"] == "concept_diffusion"
    assert "says how to draw" in surgery("plan", recipe).err


def test_a_controlnet_is_read_from_its_folder(
    surgery: Call, tiny_pipeline: Path, look: Path, tmp_path: Path
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet", torch_dtype=torch.float32)
    controlnet = ControlNetModel.from_unet(unet, conditioning_channels=3)
    for weight in controlnet.parameters():  # its last layers start as nothing
        torch.nn.init.normal_(weight, std=0.05)
    controlnet.save_pretrained(tmp_path / "net")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "edges.png")
    net = {"path": "net", "image": "edges.png", "scale": 0.5}
    entry = {"concepts": [{"patch": str(look)}], "controlnet": net}
    recipe = written(tmp_path, tiny_pipeline, {"gcfg": entry}, prompts=["a cat"])
    assert surgery("sample", "--guide", recipe, "-o", tmp_path / "a.png").code == 0
    weaker = ("--set", "guide.gcfg.controlnet.scale=0", "-o", tmp_path / "b.png")
    assert surgery("sample", "--guide", recipe, *weaker).code == 0
    with_net, without = halves(tmp_path / "a.png"), halves(tmp_path / "b.png")
    assert (with_net[0] == without[0]).all()
    assert (with_net[1] != without[1]).any()
    kept = surgery("sample", "--guide", recipe, "-o", tmp_path / "edges.png", "--overwrite")
    assert kept.code == 1
    other = ControlNetModel.from_config({**dict(controlnet.config), "cross_attention_dim": 48})
    other.save_pretrained(tmp_path / "other")
    misfit = surgery(
        "sample", "--guide", recipe, "--set", "guide.gcfg.controlnet.path=other", "-o", tmp_path / "c.png"
    )
    assert "has cross_attention_dim 48, and the checkpoint's U-Net 32" in misfit.err
    lost = surgery("check", recipe, "--set", "guide.gcfg.controlnet.image=none.png")
    assert "guide.gcfg.controlnet.image: no file" in lost.err
    useless = surgery("check", recipe, "--set", "guide.gcfg.control_weight=0")
    assert "leaves the prompt's branch out" in useless.err
