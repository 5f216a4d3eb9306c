"""Picture files as a VAE reads them: cut, resized, turned upright, or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.diffusion import load_picture
from surgery.errors import ConceptError


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """40 × 20 pixels: black, then white from the middle on."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "stripes.png")
    return tmp_path / "stripes.png"


def test_a_picture_is_cut_at_its_centre_and_scaled_to_one(stripes: Path) -> None:
    found = load_picture(stripes, 20, 20)
    assert found.shape == (3, 20, 20)
    assert found[:, :, :10].unique().tolist() == [-1.0]
    assert found[:, :, 10:].unique().tolist() == [1.0]


def test_a_picture_is_resized_by_its_shorter_side(stripes: Path) -> None:
    assert load_picture(stripes, 8, 8).shape == (3, 8, 8)


def test_a_picture_lying_on_its_side_is_turned_upright(tmp_path: Path, stripes: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    with Image.open(stripes) as picture:
        picture.save(tmp_path / "turned.png", exif=exif)
    turned = load_picture(tmp_path / "turned.png", 20, 20)
    assert torch.equal(turned, load_picture(stripes, 20, 20).flip(-1))


def test_a_file_that_is_no_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConceptError, match="cannot be read as a picture"):
        load_picture(tmp_path / "text.png", 8, 8)
