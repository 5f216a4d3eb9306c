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


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "half.png")
    found = load_picture(tmp_path / "half.png", 8, 8)
    assert bool((found[:, :, :4] == 1).all())
    assert found[:, 0, 7].tolist() == [1, -1, -1]
    gray = np.zeros((8, 8, 2), np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert bool((load_picture(tmp_path / "gray.png", 8, 8) == 1).all())


def test_gray_pictures_of_8_and_16_bits_are_the_same(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "small.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    small, deep = (load_picture(tmp_path / f"{name}.png", 16, 16) for name in ("small", "deep"))
    assert torch.equal(small, deep)
    assert torch.equal(small[0], small[2])
    assert len(small.unique()) == 16


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (2000, 10)])
def test_tiny_and_long_pictures_fill_the_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "blue").save(tmp_path / "odd.png")
    found = load_picture(tmp_path / "odd.png", 16, 24)
    assert found.shape == (3, 16, 24)
    assert found[:, 8, 12].tolist() == [-1, -1, 1]


def test_a_picture_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConceptError, match=r"huge\.png.*exceeds limit"):
        load_picture(tmp_path / "huge.png", 8, 8)


def test_a_picture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for length in (10, 40, len(content) // 2):
        (tmp_path / "cut.png").write_bytes(content[:length])
        with pytest.raises(ConceptError, match=r"cut\.png"):
            load_picture(tmp_path / "cut.png", 8, 8)


def test_whole_numbers_of_32_bits_are_read_by_their_range_and_floats_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(tmp_path / "small.tif")
    Image.fromarray(np.full((8, 8), 200 * 257, np.int32)).save(tmp_path / "large.tif")
    small, large = (load_picture(tmp_path / f"{name}.tif", 8, 8) for name in ("small", "large"))
    assert torch.equal(small, large)
    assert float(small[0, 0, 0]) == pytest.approx(200 / 127.5 - 1)
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(ConceptError, match=r"floats\.tif.*nobody knows what is white"):
        load_picture(tmp_path / "floats.tif", 8, 8)
