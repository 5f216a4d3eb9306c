"""The verb that tells where concepts live: its data, its picture, and what it refuses."""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from surgery.methods.cad import AttributionSettings
from tests.cli.conftest import Call
from tests.conftest import BuildTiny

QUICK = ("--trajectories", 1, "--no-controls", "--ratio", 0.02)


def test_attribute_tells_blocks_roles_and_overlap(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = surgery("attribute", tiny_pipeline, "cat", "dog", *QUICK, "-o", out)
    assert done.code == 0
    assert "cat: most of it in" in done.out
    found = json.loads((out / "attribution.json").read_text())
    assert [one["name"] for one in found["concepts"]] == ["cat", "dog"]
    assert found["roles"] == ["mlp_in", "mlp_out"]
    assert found["blocks"] == ["down 0", "down 1", "down 2", "mid", "up 1", "up 2", "up 3"]
    for one in found["concepts"]:
        shares = [
            share for side in ("positive", "negative") for row in one[side].values() for share in row.values()
        ]
        assert abs(sum(shares) - 1) < 1e-6
        assert len(one["by_tensor"]) == 32
    (first, both), (again, _) = found["overlaps"]
    assert (first, both) == (1.0, again)
    with Image.open(out / "map.png") as picture:
        assert picture.format == "PNG"


def test_attribute_of_one_concept_as_json(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    masks = ("--rule", "global", "--weighting", "even")
    args = ("--components", "ff_out", "--template", "a {}", *masks, "--json", "-o", out)
    found = surgery("attribute", tiny_pipeline, "cat", *QUICK, *args).json
    assert found["settings"]["selection"]["rule"] == "global"
    assert found["settings"]["attribution"]["weighting"] == "even"
    assert found["roles"] == ["mlp_out"]
    assert found["overlaps"] == [[1.0]]


def test_attribute_refuses_what_names_nothing(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    for words, said in (
        (("cat", "cat"), "named 2 times"),
        (("cat", "--template", "no place"), "expected one {}"),
        (("cat", "--components", "fff"), "name no weight"),
    ):
        done = surgery("attribute", tiny_pipeline, *words, "-o", tmp_path / "out")
        assert done.code == 1
        assert said in done.err
    assert not (tmp_path / "out").exists()
    assert surgery("attribute", tiny_pipeline, "cat", "-o", tiny_pipeline, "--overwrite").code == 1


def test_attribute_overwrites_nothing_but_an_attribution(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    done = surgery("attribute", tiny_pipeline, "cat", *QUICK, "-o", out, "--overwrite")
    assert done.code == 1
    assert "holds other files (thesis.txt)" in done.err
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    assert surgery("attribute", tiny_pipeline, "cat", *QUICK, "-o", out, "--overwrite").code == 0
    assert surgery("attribute", tiny_pipeline, "cat", *QUICK, "-o", out, "--overwrite").code == 0


def test_attribute_of_weights_that_are_nothing_says_so(
    surgery: Call, tiny_in: BuildTiny, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_in(torch.float32), base)
    (file,) = (base / "unet").glob("*.safetensors")
    tensors = load_file(file)
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, file, {"format": "pt"})
    args = ("--components", f"unet/{name}", "--json", "-o", tmp_path / "out")
    found = surgery("attribute", base, "cat", *QUICK, *args).json
    assert {one["kind"] for one in found["findings"]} >= {"no-gradient", "masked-already"}
    assert found["concepts"][0]["positive"] == {"mid": {"mlp_out": 0.0}}


def test_attribute_of_own_pictures_looks_for_what_stands_in_the_way(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    pictures = [word for number in range(3) for word in ("--image", tmp_path / f"{number}.png")]
    how = ("--polarity", "negative", "--micro-batch", 8, "--checkpointing", "--components", "ff_out")
    args = ("--objective", "denoise", *pictures, *how, "--json", "-o", tmp_path / "out")
    found = surgery("attribute", tiny_pipeline, "cat", *QUICK[2:], *args).json
    assert found["settings"]["polarity"] == "negative"
    assert found["concepts"][0]["attribution"][0]["pairs"] == 201
    for words, said in (
        (("cat", "dog"), "--image is for one concept"),
        (("cat", "--trajectories", 2), "with --image none are"),
        (("cat", "--quick"), "--quick shortens paths"),
        (("cat", "--image", tmp_path / "none.png"), "none.png; expected a picture"),
    ):
        done = surgery("attribute", tiny_pipeline, *words, *QUICK[2:], *args)
        assert done.code == 2
        assert said in done.err


def test_both_text_encoders_have_blocks_of_their_own(surgery: Call, tiny_xl: Path, tmp_path: Path) -> None:
    args = ("--components", "text_mlp", *QUICK, "--json", "-o", tmp_path / "out")
    found = surgery("attribute", tiny_xl, "cat", *args).json
    second = [block for block in found["blocks"] if block.startswith("2nd ")]
    first = [block.removeprefix("2nd ") for block in second]
    assert second
    assert found["blocks"][-len(second) :] == second
    assert found["blocks"][: len(first)] == first
    assert set(found["concepts"][0]["positive"]) == set(found["blocks"])


def test_quick_takes_fewer_and_shorter_paths(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    args = ("--no-controls", "--components", "ff_out", "--quick", "--json", "-o", tmp_path / "out")
    found = surgery("attribute", tiny_pipeline, "cat", *args).json
    made = found["settings"]["attribution"]
    assert (made["trajectories"], made["sampling_steps"]) == (16, 4)
    assert found["concepts"][0]["attribution"][0]["pairs"] == 32


def test_the_help_tells_the_usual_numbers(surgery: Call) -> None:
    usual = AttributionSettings()
    said = " ".join(surgery("attribute", "--help").out.split())
    assert f"Paths ({usual.trajectories} when left out), or drawn pictures ({usual.pictures})" in said


def test_attribute_grows_masks_to_what_is_left(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    args = ("--trajectories", 1, "--no-controls", "--components", "ff_out", "--left", 0.95)
    found = surgery("attribute", tiny_pipeline, "cat", *args, "--json", "-o", tmp_path / "out").json
    assert found["settings"]["selection"]["left"] == 0.95
    assert 0 < found["concepts"][0]["ratio"] < 0.1
    for more, said in (
        (("--ratio", 0.01), "--ratio; give one"),
        (("--polarity", "negative"), "how far a concept is erased"),
        (("--objective", "denoise"), "how far a concept is erased"),
    ):
        done = surgery("attribute", tiny_pipeline, "cat", *args, *more, "-o", tmp_path / "other")
        assert done.code == 2
        assert said in done.err
