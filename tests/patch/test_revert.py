"""Reverting gives the old bytes, or says why it cannot."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Dense
from surgery.errors import PatchError
from surgery.patch import Patch, Term, apply_patch, make_patch, revert_patch
from tests.support.folders import (
    CONV_NAME,
    FC2_NAME,
    TO_K_NAME,
    contents,
    small_weights,
    weight_file,
    write_folder,
)
from tests.support.patches import random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def patch(base: Path) -> Patch:
    return random_patch(base)


@pytest.fixture
def edited(base: Path, patch: Patch, tmp_path: Path) -> Path:
    apply_patch(patch, base, tmp_path / "edited", undo=tmp_path / "undo")
    return tmp_path / "edited"


def sparse_patch(base: Path, changed: int) -> Patch:
    """Changes the first elements of a tensor of 36."""
    change = torch.zeros(36)
    change[:changed] = 0.5
    return make_patch(
        [Term(delta=Delta({CONV_NAME: Dense(change.reshape(2, 2, 3, 3))}))], open_checkpoint(base)
    )


# An old fp16 value takes 2 bytes, a position 4: six bytes for each changed element, or 72 for all.
@pytest.mark.parametrize(("changed", "positions"), [(1, True), (11, True), (12, False), (36, False)])
def test_the_undo_file_takes_the_smaller_of_two_encodings(
    base: Path, tmp_path: Path, changed: int, positions: bool
) -> None:
    patch = sparse_patch(base, changed)
    apply_patch(patch, base, tmp_path / "out", undo=tmp_path / "undo")
    stored = load_file(tmp_path / "undo")
    assert (f"{CONV_NAME}::positions" in stored) == positions
    assert stored[f"{CONV_NAME}::old"].numel() == (changed if positions else 36)
    revert_patch(patch, tmp_path / "out", tmp_path / "back", undo=tmp_path / "undo")
    assert contents(tmp_path / "back") == contents(base)


def test_equal_applications_write_equal_undo_files(
    base: Path, patch: Patch, edited: Path, tmp_path: Path
) -> None:
    apply_patch(patch, base, tmp_path / "again", undo=tmp_path / "undo again")
    assert (tmp_path / "undo").read_bytes() == (tmp_path / "undo again").read_bytes()


def test_an_undo_file_that_is_there_already_serves_a_second_run(
    base: Path, patch: Patch, edited: Path, tmp_path: Path
) -> None:
    apply_patch(patch, base, tmp_path / "again", undo=tmp_path / "undo")
    assert contents(tmp_path / "again") == contents(edited)


def test_another_patch_on_other_tensors_stays_in(base: Path, tmp_path: Path) -> None:
    first, second = random_patch(base, [FC2_NAME]), random_patch(base, [TO_K_NAME], seed=5)
    apply_patch(first, base, tmp_path / "one", undo=tmp_path / "undo")
    apply_patch(second, tmp_path / "one", tmp_path / "both")
    revert_patch(first, tmp_path / "both", tmp_path / "back", undo=tmp_path / "undo")
    apply_patch(second, base, tmp_path / "expected")
    assert contents(tmp_path / "back") == contents(tmp_path / "expected")


def test_a_patch_that_adds_needs_exactly_one_source_of_the_old_values(
    base: Path, patch: Patch, edited: Path, tmp_path: Path
) -> None:
    with pytest.raises(PatchError, match="rounding cannot be undone"):
        revert_patch(patch, edited, tmp_path / "back")
    with pytest.raises(PatchError, match="one of them was expected"):
        revert_patch(patch, edited, tmp_path / "back", undo=tmp_path / "undo", base=base)


def test_a_checkpoint_without_the_patch_is_refused(
    base: Path, patch: Patch, edited: Path, tmp_path: Path
) -> None:
    with pytest.raises(PatchError, match="does not have the patch"):
        revert_patch(patch, base, tmp_path / "back", undo=tmp_path / "undo")
    with pytest.raises(PatchError, match="applied at another strength"):
        revert_patch(patch, base, tmp_path / "back", base=base)


def test_a_later_change_of_a_touched_tensor_is_refused(
    base: Path, patch: Patch, edited: Path, tmp_path: Path
) -> None:
    later = random_patch(edited, [FC2_NAME], seed=7)
    apply_patch(later, edited, tmp_path / "later")
    with pytest.raises(PatchError, match=f"{FC2_NAME}.*was changed since.*later patches first"):
        revert_patch(patch, tmp_path / "later", tmp_path / "back", undo=tmp_path / "undo")
    with pytest.raises(PatchError, match=r"another patch after it.*undo file"):
        revert_patch(patch, tmp_path / "later", tmp_path / "back", base=base)


def test_a_base_that_is_none_is_refused(patch: Patch, edited: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", small_weights(seed=1))
    with pytest.raises(PatchError, match="this patch was made for"):
        revert_patch(patch, edited, tmp_path / "back", base=other)


def test_a_base_in_another_precision_is_refused(patch: Patch, edited: Path, tmp_path: Path) -> None:
    half = small_weights()
    single = {
        component: {
            key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
        }
        for component, tensors in half.items()
    }
    with pytest.raises(PatchError, match="the base it was applied to was expected"):
        revert_patch(patch, edited, tmp_path / "back", base=write_folder(tmp_path / "single", single))


def test_an_undo_file_of_another_patch_is_refused(base: Path, edited: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="belongs to the patch"):
        revert_patch(random_patch(base, seed=3), edited, tmp_path / "back", undo=tmp_path / "undo")


def test_a_damaged_undo_file_is_refused(patch: Patch, edited: Path, tmp_path: Path) -> None:
    undo = tmp_path / "undo"
    raw = bytearray(undo.read_bytes())
    raw[-1] ^= 1
    undo.write_bytes(raw)
    with pytest.raises(PatchError, match=r"would come back as .*damaged"):
        revert_patch(patch, edited, tmp_path / "back", undo=undo)
    assert not (tmp_path / "back").exists()
    undo.write_bytes(raw[:-1])
    with pytest.raises(PatchError, match="cut off"):
        revert_patch(patch, edited, tmp_path / "back", undo=undo)


def test_other_files_are_no_undo_file(patch: Patch, edited: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="no undo file of this program"):
        revert_patch(patch, edited, tmp_path / "back", undo=weight_file(edited, "unet"))
    save_file(
        {"x": torch.ones(1)},
        tmp_path / "new",
        metadata={"sdpatch.undo": '{"version": "9", "patch": "", "tensors": {}}'},
    )
    with pytest.raises(PatchError, match="an undo file of version 9; this program knows those up to 1"):
        revert_patch(patch, edited, tmp_path / "back", undo=tmp_path / "new")


def test_another_base_that_agrees_in_half_precision_only_is_refused(tmp_path: Path) -> None:
    exact = small_weights(torch.float32)
    rounded = {c: {k: _half(t) for k, t in tensors.items()} for c, tensors in exact.items()}
    base = write_folder(tmp_path / "base", exact)
    other = write_folder(tmp_path / "other", rounded)
    patch = random_patch(base)
    apply_patch(patch, base, tmp_path / "edited")
    with pytest.raises(PatchError, match="not bit for bit"):
        revert_patch(patch, tmp_path / "edited", tmp_path / "back", base=other)
    assert not (tmp_path / "back").exists()
    revert_patch(patch, tmp_path / "edited", tmp_path / "back", base=base)
    assert contents(tmp_path / "back") == contents(base)


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().float() if tensor.is_floating_point() else tensor
