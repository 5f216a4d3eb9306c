"""A diff leads from one checkpoint to another in any layout, in the fewest bytes, or says why it cannot."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from surgery.checkpoint import open_checkpoint, spool
from surgery.delta import Replace
from surgery.errors import PatchError
from surgery.patch import (
    apply_patch,
    diff_checkpoints,
    file,
    load_patch,
    patch_digest,
    revert_patch,
    save_patch,
)
from surgery.patch.diff import _bytes, _replace, smallest
from tests.support.folders import (
    CONV_NAME,
    FC2,
    FC2_NAME,
    TO_K,
    TO_K_NAME,
    contents,
    small_weights,
    write_folder,
)
from tests.support.patches import random_patch
from tests.support.singles import sd1_tensors, write_single

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def written(folder: Path, dtype: torch.dtype = torch.float16, **changes: Tensor) -> Path:
    """The small folder, with some tensors of the UNet and the text encoder changed by addition."""
    weights = small_weights(dtype)
    for key, change in changes.items():
        table = weights["unet"] if key == "to_k" else weights["text_encoder"]
        path = TO_K if key == "to_k" else f"text_model.{FC2}"
        table[path] = (table[path] + change).to(dtype)
    return write_folder(folder, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_applying_a_diff_gives_the_edited_files_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    base = written(tmp_path / "base", dtype)
    edited = written(tmp_path / "edited", dtype, fc2=torch.eye(3, 5), to_k=torch.full((4, 3), 1e-3))
    save_patch(diff_checkpoints(base, edited).patch, tmp_path / "patch")
    patch = load_patch(tmp_path / "patch")
    assert apply_patch(patch, base, tmp_path / "made").exact
    assert contents(tmp_path / "made") == contents(edited)


def test_a_negative_zero_that_turned_positive_is_a_difference(tmp_path: Path) -> None:
    base = written(tmp_path / "base")
    edited = written(tmp_path / "edited", fc2=torch.zeros(3, 5))  # -0.0 + 0.0 is +0.0
    patch = diff_checkpoints(base, edited).patch
    assert {name: change.changed for name, change in patch.changes.items()} == {FC2_NAME: 1}
    apply_patch(patch, base, tmp_path / "made")
    assert contents(tmp_path / "made") == contents(edited)


def test_an_fp32_base_takes_an_fp16_checkpoint_and_not_the_other_way_round(tmp_path: Path) -> None:
    half, full = written(tmp_path / "half"), write_folder(tmp_path / "full", small_weights(torch.float32))
    apply_patch(diff_checkpoints(full, half).patch, full, tmp_path / "made")
    made, wanted = open_checkpoint(tmp_path / "made"), open_checkpoint(half)
    assert all(torch.equal(made.read(name), wanted.read(name).float()) for name in made.tensors)
    with pytest.raises(PatchError, match=r"cannot hold\. Convert the base to torch\.float32") as caught:
        diff_checkpoints(half, full)
    assert len(caught.value.faults) == 6


def test_equal_checkpoints_have_no_patch(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="there is nothing to write"):
        diff_checkpoints(written(tmp_path / "one"), written(tmp_path / "other"))


def test_all_tensors_that_do_not_correspond_are_named(tmp_path: Path) -> None:
    base, other = written(tmp_path / "base"), small_weights()
    other["unet"]["extra.weight"] = torch.ones(2).half()
    other["unet"][TO_K] = torch.ones(4, 4).half()
    del other["vae"]["decoder.conv_in.weight"]
    other["vae"]["decoder.conv_out.weight"] = torch.ones(2).half()
    with pytest.raises(PatchError) as caught:
        diff_checkpoints(base, write_folder(tmp_path / "other", other))
    report = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 4
    for name in ("unet/extra.weight", "vae/decoder.conv_in.weight", "vae/decoder.conv_out.weight", TO_K_NAME):
        assert repr(name) in report


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base = written(tmp_path / "base")
    broken = written(tmp_path / "broken", to_k=torch.full((4, 3), torch.inf))
    with pytest.raises(PatchError, match="NaN or infinity"):
        diff_checkpoints(base, broken)


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ((slice(5), slice(None)), "rows"),
        ((slice(None), slice(3)), "columns"),
        ((slice(None, None, 9), slice(None, None, 11)), "elements"),
        ((slice(None), slice(None)), "all"),
    ],
)
def test_the_form_of_fewest_bytes_is_chosen(where: tuple[slice, slice], kind: str) -> None:
    old = torch.randn(40, 50, generator=torch.Generator().manual_seed(1)).half()
    new = old.clone()
    new[where] += 1
    form = smallest(old != new, new)
    assert form.places.kind == kind
    assert torch.equal(form.places.put(old, form.new), new)


@pytest.mark.parametrize("keep_old", [False, True])
@pytest.mark.parametrize("kind", ["rows", "columns", "elements", "all"])
def test_forms_that_cannot_be_smaller_need_not_be_made(kind: str, keep_old: bool) -> None:
    old = torch.randn(16, 24, generator=torch.Generator().manual_seed(1)).half()
    for count in range(1, 16 * 24, 7):
        new, chosen = old.clone(), torch.randperm(16 * 24, generator=torch.Generator().manual_seed(count))
        where = {"rows": chosen % 16 * 24, "columns": chosen % 24, "elements": chosen, "all": chosen}[kind]
        new.view(-1)[where[:count]] += 1
        differs, kept = old != new, old if keep_old else None
        every = [
            _replace("all", None, new, kept),
            _replace("elements", differs.flatten(), new, kept),
            _replace("rows", differs.any(1), new, kept),
            _replace("columns", differs.any(0), new, kept),
        ]
        assert _bytes(smallest(differs, new, kept)) == min(_bytes(form) for form in every)


def test_a_large_patch_is_kept_on_the_disk_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edited = written(tmp_path / "base"), written(tmp_path / "edited", fc2=torch.eye(3, 5))
    save_patch(diff_checkpoints(base, edited).patch, tmp_path / "patch")
    monkeypatch.setattr(file, "_IN_MEMORY", 0)
    monkeypatch.setattr(spool, "_SMALL", 1)
    save_patch(diff_checkpoints(base, edited).patch, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "patch").read_bytes()
    apply_patch(load_patch(tmp_path / "patch"), base, tmp_path / "made")
    assert contents(tmp_path / "made") == contents(edited)


def test_a_patch_that_carries_the_old_values_reverts_by_itself(tmp_path: Path) -> None:
    base, edited = written(tmp_path / "base"), written(tmp_path / "edited", fc2=torch.eye(3, 5))
    patch = diff_checkpoints(base, edited, keep_old=True).patch
    revert_patch(patch, edited, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(base)
    with pytest.raises(PatchError, match="does not have the patch"):
        revert_patch(patch, base, tmp_path / "again")


def test_a_patch_without_old_values_asks_for_them(tmp_path: Path) -> None:
    base, edited = written(tmp_path / "base"), written(tmp_path / "edited", fc2=torch.eye(3, 5))
    patch = diff_checkpoints(base, edited).patch
    with pytest.raises(PatchError, match="the undo file or the base was expected"):
        revert_patch(patch, edited, tmp_path / "back")


def test_a_low_rank_diff_states_its_error(tmp_path: Path) -> None:
    base = written(tmp_path / "base", torch.float32)
    change = torch.tensor([3.0, 0.0, 0.0])[:, None] * torch.ones(5) + 0.01 * torch.eye(3, 5)
    edited = written(tmp_path / "edited", torch.float32, fc2=change)
    difference = diff_checkpoints(base, edited, rank=1)
    apply_patch(difference.patch, base, tmp_path / "made")
    off = open_checkpoint(tmp_path / "made").read(FC2_NAME) - open_checkpoint(edited).read(FC2_NAME)
    assert 0.005 < difference.errors[FC2_NAME] < 0.02
    assert float(off.abs().max()) == pytest.approx(difference.errors[FC2_NAME], abs=2e-3)  # fp16 of 3


def test_equal_differences_are_one_patch(tmp_path: Path) -> None:
    base, edited = written(tmp_path / "base"), written(tmp_path / "edited", to_k=torch.eye(4, 3))
    first, second = (diff_checkpoints(base, edited).patch for _ in range(2))
    assert patch_digest(first) == patch_digest(second)
    form = first.terms[0].delta.terms[TO_K_NAME]
    assert isinstance(form, Replace)
    assert CONV_NAME not in first.changes


def test_a_low_rank_diff_states_the_error_of_what_it_makes(tmp_path: Path) -> None:
    before, after = small_weights(torch.float32), small_weights(torch.float32, seed=1)
    base, edited = write_folder(tmp_path / "base", before), write_folder(tmp_path / "edited", after)
    found = diff_checkpoints(base, edited, rank=2)
    apply_patch(found.patch, base, tmp_path / "made")
    made, wanted = open_checkpoint(tmp_path / "made"), open_checkpoint(edited)
    for name, error in found.errors.items():
        assert error == float((made.read(name).double() - wanted.read(name).double()).abs().max())


def test_what_lies_beside_the_weights_is_said_to_be_left_out(tmp_path: Path) -> None:
    tensors = sd1_tensors()
    base = write_single(tmp_path / "base.safetensors", tensors)
    averaged = write_single(tmp_path / "schedule.safetensors", {**tensors, "alphas_cumprod": torch.ones(5)})
    with pytest.raises(PatchError, match=r"but for the noise schedule \(1 tensor\), which no patch carries"):
        diff_checkpoints(base, averaged)
    key = next(key for key in tensors if key.endswith("mlp.fc2.bias"))
    both = {**tensors, "alphas_cumprod": torch.ones(5), key: tensors[key] + 1}
    found = diff_checkpoints(base, write_single(tmp_path / "both.safetensors", both))
    assert found.left_out == ("the noise schedule (1 tensor)",)


def test_types_that_no_patch_holds_are_refused(tmp_path: Path) -> None:
    weights = small_weights()
    weights["unet"] = {key: one.to(torch.float8_e4m3fn) for key, one in weights["unet"].items()}
    base = write_folder(tmp_path / "base", small_weights())
    with pytest.raises(PatchError, match=r"is stored as torch\.float8_e4m3fn"):
        diff_checkpoints(base, write_folder(tmp_path / "eight", weights))
    with pytest.raises(PatchError, match=r"is stored as torch\.float8_e4m3fn"):
        apply_patch(random_patch(base), tmp_path / "eight", tmp_path / "out")


def test_old_values_move_a_fine_tune_as_far_as_the_base(tmp_path: Path) -> None:
    base, edited = (
        written(tmp_path / "base", torch.float32),
        written(tmp_path / "e", torch.float32, to_k=torch.ones(4, 3)),
    )
    tuned = small_weights(torch.float32)
    tuned["unet"][TO_K] += 2.0
    fine, plain = write_folder(tmp_path / "fine", tuned), small_weights(torch.float32)["unet"][TO_K]
    for keep_old, expected in ((True, tuned["unet"][TO_K] + 1), (False, plain + 1)):
        patch = diff_checkpoints(base, edited, keep_old=keep_old).patch
        out = tmp_path / str(keep_old)
        apply_patch(patch, fine, out, allow_other_base=True)
        torch.testing.assert_close(open_checkpoint(out).read(TO_K_NAME), expected)
