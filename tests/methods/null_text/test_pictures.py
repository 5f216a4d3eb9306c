"""A folder of pictures: what is left out is named, and what is read is encoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.diffusion import encode, load_picture
from surgery.errors import MethodError
from surgery.methods.null_text import pictures as room
from surgery.methods.null_text import read_pictures
from surgery.methods.null_text.pictures import split_off
from surgery.store import Store


def fill(folder: Path, count: int = 3) -> None:
    for number in range(count):
        ramp = np.tile(np.linspace(0, 40 * (number + 1), 48, dtype=np.uint8), (48, 1))
        Image.fromarray(np.stack([ramp] * 3, -1)).save(folder / f"{number}.png")


def test_pictures_are_encoded_with_their_mirror_images(models: Any, tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "deeper").mkdir()
    Image.new("L", (40, 60), 99).save(tmp_path / "deeper" / "gray.JPG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_pictures(models, tmp_path)
    assert found.names == ("0.png", "1.png", "2.png", str(Path("deeper") / "gray.JPG"))
    assert found.findings == ()
    pixels = load_picture(tmp_path / "1.png", 32, 32)[None]
    for seen, mean in ((pixels, found.mean), (pixels.flip(3), found.mirrored_mean)):
        torch.testing.assert_close(mean[1:2], encode(models.vae, seen)[0], rtol=1e-3, atol=1e-4)
    rows, turned = torch.tensor([1, 1]), torch.tensor([False, True])
    drawn = found.drawn(rows, turned, torch.zeros(2, *found.mean.shape[1:]))
    assert torch.equal(drawn, torch.stack([found.mean[1], found.mirrored_mean[1]]))


def test_files_that_are_no_pictures_or_small_ones_are_named(models: Any, tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (3, 200)).save(tmp_path / "thin.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    found = read_pictures(models, tmp_path)
    assert {(one.kind, one.subject) for one in found.findings} == {
        ("no-picture", "broken.png"),
        ("small-picture", "thin.png"),
    }
    assert found.names == ("0.png", "1.png", "2.png", "thin.png")


def test_what_is_no_file_or_of_another_kind_is_named_too(models: Any, tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "phone.HEIC").write_bytes(b"no matter")
    found = read_pictures(models, tmp_path, store=Store(tmp_path / ".state"))
    assert found.names == ("0.png", "1.png")
    assert {(one.subject, one.kind) for one in found.findings} == {
        (name, "no-picture") for name in ("folder.png", "gone.jpg", "phone.HEIC")
    }


def test_latents_are_stored(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    fill(tmp_path / "in")
    store = Store(tmp_path / "store")
    first = read_pictures(models, tmp_path / "in", store=store)
    monkeypatch.setattr(room, "encode", lambda *_: pytest.fail("encoded again"))
    again = read_pictures(models, tmp_path / "in", store=store)
    assert torch.equal(first.mean, again.mean)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_refused(models: Any, tmp_path: Path, count: int) -> None:
    fill(tmp_path, count)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(MethodError, match=rf"{count} pictures can be read.*left out"):
        read_pictures(models, tmp_path)
    with pytest.raises(MethodError, match="is no folder"):
        read_pictures(models, tmp_path / "elsewhere")


def test_what_is_held_out_is_spread_evenly(models: Any, tmp_path: Path) -> None:
    fill(tmp_path, 2)
    two = read_pictures(models, tmp_path)
    kept, held = split_off(two, 0.9)
    assert (kept.tolist(), held.tolist()) == ([0], [1])
    assert split_off(two, 0.0)[1].tolist() == []
