"""The verb that tells where concepts live: its data, its picture, and what it refuses."""

import json
from pathlib import Path

from PIL import Image

from tests.cli.conftest import Call

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
    args = ("--components", "ff_out", "--template", "a {}", "--json", "-o", out)
    found = surgery("attribute", tiny_pipeline, "cat", *QUICK, *args).json
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
