"""Two checkpoints side by side: which tensors each has, and their values in blocks."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery.audit.sides import CheckpointPair, matrix_shape, pieces, refuse_strangers
from surgery.checkpoint import convert_checkpoint, open_checkpoint
from surgery.errors import CheckpointError
from tests.audit.folders import fc2, pair, weights
from tests.support.folders import write_folder

NAME = f"text_encoder/{fc2(0)}"


def opened(first: Path, second: Path) -> CheckpointPair:
    return CheckpointPair(base=open_checkpoint(first), edited=open_checkpoint(second))


@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 30))
def test_pieces_cover_every_element_once(rows: int, columns: int, elements: int) -> None:
    seen = torch.zeros(rows, columns)
    for row, stop, column, end in pieces(rows, columns, elements):
        assert (stop - row) * (end - column) <= max(elements, 1)
        seen[row:stop, column:end] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize("elements", [7, 200, 1 << 20])
def test_blocks_put_together_are_the_tensors(tmp_path: Path, elements: int) -> None:
    before, after = weights(seed=0), weights(seed=1)
    both = opened(*pair(tmp_path, before, after))
    for side, tensors in (("before", before), ("after", after)):
        whole = tensors["text_encoder"][fc2(0)]
        built = torch.full(whole.shape, float("nan"))
        for block in both.blocks(NAME, elements):
            part: Tensor = getattr(block, side)
            rows, columns = part.shape
            built[block.row : block.row + rows, block.column : block.column + columns] = part
        assert torch.equal(built, whole)


def test_a_scalar_is_one_row_of_one_column() -> None:
    assert matrix_shape(()) == (1, 1)
    assert matrix_shape((5,)) == (5, 1)
    assert matrix_shape((2, 3, 4)) == (2, 12)


def test_tensors_of_one_side_and_other_shapes_are_told(tmp_path: Path) -> None:
    before, after = weights(), weights()
    after["unet"]["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    del after["unet"]["conv_in.bias"]
    after["vae"]["decoder.conv_out.bias"] = torch.zeros(3)
    listed = opened(*pair(tmp_path, before, after)).tensors
    assert listed["unet/conv_in.weight"].presence == "reshaped"
    assert listed["unet/conv_in.bias"].presence == "missing"
    assert listed["vae/decoder.conv_out.bias"].presence == "added"
    assert listed["vae/decoder.conv_out.bias"].dtypes == (None, torch.float32)
    assert listed[NAME].presence == "shared"
    assert list(listed) == sorted(listed)


def test_a_folder_and_a_single_file_have_the_same_tensors(tiny_pipeline: Path, tmp_path: Path) -> None:
    single = tmp_path / "tiny.safetensors"
    convert_checkpoint(open_checkpoint(tiny_pipeline), single)
    both = opened(tiny_pipeline, single)
    assert {listed.presence for listed in both.tensors.values()} == {"shared"}


def test_another_family_is_refused_with_what_each_is(tmp_path: Path) -> None:
    before, after = weights(), weights()
    key = next(key for key in after["unet"] if key.endswith("proj_in.weight"))
    after["unet"][key] = torch.zeros(8, 8)  # a linear map, as in SD 2.x
    both = opened(*pair(tmp_path, before, after))
    with pytest.raises(CheckpointError) as caught:
        refuse_strangers(both.base, both.edited)
    assert "stable-diffusion-v1 of" in str(caught.value)
    assert "stable-diffusion-v2 of" in str(caught.value)


def test_another_size_is_refused(tmp_path: Path) -> None:
    smaller = {
        component: {key: tensor[:2].clone() for key, tensor in tensors.items()}
        for component, tensors in weights().items()
    }
    first = write_folder(tmp_path / "first", weights())
    both = opened(first, write_folder(tmp_path / "second", smaller))
    with pytest.raises(CheckpointError, match="0 tensors have one name and one shape"):
        refuse_strangers(both.base, both.edited)


def test_an_inpainting_model_is_compared_with_its_base(tmp_path: Path) -> None:
    after = weights()
    after["unet"]["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    both = opened(*pair(tmp_path, weights(), after))
    refuse_strangers(both.base, both.edited)
