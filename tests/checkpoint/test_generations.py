"""Folders load alike in both generations of the libraries, or are refused."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.support.generations import run_check


def test_the_older_generation_loads_every_weight_as_stored(tiny_pipeline: Path) -> None:
    seen = run_check("older", "components", tiny_pipeline)
    assert [version[:5] for version in seen["libraries"]] == ["0.35.", "4.57."]
    assert seen["wrong"] == []
    assert seen["offsets"] == [[0, 0], [0, 1], [2, 7], [8, 10], [11, 14], [0, 0]]
    assert seen["spread"] > 0.01


def test_the_older_generation_refuses_text_keys_that_it_would_leave_at_random(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "new keys"))
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {key.removeprefix("text_model."): value for key, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert "no weight for 196 parameters" in run_check("older", "refusal", folder)["message"]
    assert run_check("current", "refusal", folder)["message"] == ""
