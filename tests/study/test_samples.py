from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import sample
from surgery.errors import SurgeryError
from surgery.patch import applied, save_patch
from surgery.report import SheetRow, contact_sheet
from surgery.study import sample_sheet, write_sheet
from tests.support.patches import random_patch
from tests.support.tiny import FC2

PROMPTS = ["a photo of a cat", "a dog"]


@pytest.fixture(scope="module")
def patch_file(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patch") / "patch.safetensors"
    save_patch(random_patch(tiny_pipeline, [FC2.format(11)], size=2.0), path)
    return path


def test_a_sheet_shows_the_same_seeds_before_and_after_the_patch(
    tiny_pipeline: Path, patch_file: Path
) -> None:
    sheet = sample_sheet(tiny_pipeline, PROMPTS, patch=patch_file, seeds=[4], steps=1, guidance=1.0)
    pipeline = load_pipeline(tiny_pipeline)
    before = sample(pipeline, PROMPTS, [4, 4], steps=1, guidance=1.0)
    with applied(pipeline, random_patch(tiny_pipeline, [FC2.format(11)], size=2.0)):
        after = sample(pipeline, PROMPTS, [4, 4], steps=1, guidance=1.0)
    rows = [
        SheetRow(label=prompt, groups=(before[row : row + 1], after[row : row + 1]))
        for row, prompt in enumerate(PROMPTS)
    ]
    expected = contact_sheet(rows, groups=["before", "after"], columns=["seed 4"])
    assert (before != after).any()
    assert np.array_equal(np.asarray(sheet), np.asarray(expected))


def test_without_a_patch_a_sheet_has_one_group(tiny_pipeline: Path) -> None:
    one = sample_sheet(tiny_pipeline, PROMPTS[:1], seeds=[1, 2], steps=1, guidance=1.0)
    pictures = sample(load_pipeline(tiny_pipeline), PROMPTS[:1] * 2, [1, 2], steps=1, guidance=1.0)
    expected = contact_sheet(
        [SheetRow(label=PROMPTS[0], groups=(pictures,))], groups=[""], columns=["seed 1", "seed 2"]
    )
    assert np.array_equal(np.asarray(one), np.asarray(expected))


def test_a_written_sheet_is_a_png_and_is_not_written_over(tmp_path: Path) -> None:
    sheet = Image.new("RGB", (20, 10), "red")
    write_sheet(sheet, tmp_path / "sheet.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), np.asarray(sheet))
    with pytest.raises(SurgeryError, match="exists"):
        write_sheet(sheet, tmp_path / "sheet.png")
    write_sheet(Image.new("RGB", (20, 10), "blue"), tmp_path / "sheet.png", overwrite=True)
