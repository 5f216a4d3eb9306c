"""Masks of single weights, applied to copies of their base in another precision."""

from pathlib import Path

import torch

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Places, Rescale
from surgery.patch import Term, apply_patch, make_patch, revert_patch
from tests.support.folders import FC2_NAME, contents, small_weights, write_folder

INDEX = [1, 2, 6]


def test_what_is_masked_leaves_no_residue_in_single_precision(tmp_path: Path) -> None:
    half = write_folder(tmp_path / "half", small_weights(torch.float16))
    single = write_folder(tmp_path / "single", small_weights(torch.float32))
    places = Places("elements", open_checkpoint(half).shapes[FC2_NAME], torch.tensor(INDEX))
    form = Rescale(places, torch.tensor(0.0))
    patch = make_patch([Term(delta=Delta({FC2_NAME: form}), source="cad")], open_checkpoint(half))
    apply_patch(patch, single, tmp_path / "edited", undo=tmp_path / "undo")
    before, after = (open_checkpoint(one).read(FC2_NAME).flatten() for one in (single, tmp_path / "edited"))
    assert after.dtype == torch.float32
    assert not torch.equal(before, before.half().float())  # half precision would leave something
    assert after[INDEX].tolist() == [0.0] * len(INDEX)
    others = [place for place in range(len(before)) if place not in INDEX]
    assert torch.equal(after[others], before[others])
    revert_patch(patch, tmp_path / "edited", tmp_path / "back", undo=tmp_path / "undo")
    assert contents(tmp_path / "back") == contents(single)
