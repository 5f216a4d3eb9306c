"""Applying writes the recorded weights into the input's own layout, or nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.atomic import fault_hook
from surgery.delta import Delta, Dense
from surgery.errors import CheckpointError, PatchError, SurgeryError
from surgery.patch import Term, apply_patch, make_patch, revert_patch
from tests.support.folders import (
    CONV_NAME,
    FC2,
    FC2_NAME,
    TO_K_NAME,
    contents,
    small_weights,
    weight_file,
    write_folder,
)
from tests.support.patches import NAMES, random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_dense_half_precision_change_is_added_as_numpy_adds(base: Path, tmp_path: Path) -> None:
    change = (torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) / 10).half()
    patch = make_patch([Term(delta=Delta({FC2_NAME: Dense(change)}))], open_checkpoint(base))
    apply_patch(patch, base, tmp_path / "out")
    expected = open_checkpoint(base).read(FC2_NAME).numpy() + change.numpy()
    found = open_checkpoint(tmp_path / "out").read(FC2_NAME).numpy()
    assert np.array_equal(found, expected)


def test_only_touched_tensors_change_and_headers_stay(base: Path, tmp_path: Path) -> None:
    apply_patch(random_patch(base, [CONV_NAME]), base, tmp_path / "out")
    before, after = contents(base), contents(tmp_path / "out")
    assert {path for path in before if before[path] != after.get(path)} == {
        "unet/diffusion_pytorch_model.safetensors"
    }
    old, new = open_checkpoint(base), open_checkpoint(tmp_path / "out")
    assert [entry.key for entry in new.headers[weight_file(tmp_path / "out", "unet")].entries] == [
        entry.key for entry in old.headers[weight_file(base, "unet")].entries
    ]
    changed = {name for name in old.tensors if not torch.equal(old.read(name), new.read(name))}
    assert changed == {CONV_NAME}


def test_an_element_without_a_change_keeps_its_negative_zero(base: Path, tmp_path: Path) -> None:
    change = torch.ones(3, 5)
    change[0, 0] = 0
    patch = make_patch([Term(delta=Delta({FC2_NAME: Dense(change)}))], open_checkpoint(base))
    apply_patch(patch, base, tmp_path / "out")
    assert bool(open_checkpoint(tmp_path / "out").read(FC2_NAME)[0, 0].signbit())


def test_the_report_counts_changed_elements(base: Path, tmp_path: Path) -> None:
    change = torch.zeros(3, 5)
    change[1, :2] = 0.5
    patch = make_patch([Term(delta=Delta({FC2_NAME: Dense(change)}))], open_checkpoint(base))
    report = apply_patch(patch, base, tmp_path / "out")
    assert report.exact
    assert report.tensors[FC2_NAME].changed == 2
    assert patch.changes[FC2_NAME].changed == 2


def test_at_another_strength_no_outcome_is_claimed(base: Path, tmp_path: Path) -> None:
    report = apply_patch(random_patch(base), base, tmp_path / "out", strength=0.5)
    assert {tensor.result for tensor in report.tensors.values()} == {None}
    assert not report.exact


def test_half_the_strength_is_half_the_change(base: Path, tmp_path: Path) -> None:
    change = Dense(torch.full((3, 5), 0.25))
    patch = make_patch([Term(delta=Delta({FC2_NAME: change}))], open_checkpoint(base))
    apply_patch(patch, base, tmp_path / "out", strength=0.5)
    expected = open_checkpoint(base).read(FC2_NAME) + torch.tensor(0.125).half()
    assert torch.equal(open_checkpoint(tmp_path / "out").read(FC2_NAME), expected)


def test_another_base_is_refused_tensor_by_tensor(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    weights = small_weights()
    weights["text_encoder"][f"text_model.{FC2}"][1, 1] += 1
    weights["unet"][TO_K_NAME.removeprefix("unet/")][0, 0] += 1
    other = write_folder(tmp_path / "other", weights)
    with pytest.raises(PatchError) as caught:
        apply_patch(patch, other, tmp_path / "out")
    assert len(caught.value.faults) == 2
    for name in (FC2_NAME, TO_K_NAME):
        before = patch.changes[name].before.bytes[:12]
        assert any(name in fault and before in fault for fault in caught.value.faults)
    assert names_in(tmp_path) == ["base", "other"]


def fine_tune(folder: Path) -> Path:
    """The base with another number in one of the touched tensors, and in one that is left alone."""
    weights = small_weights()
    weights["text_encoder"][f"text_model.{FC2}"][1, 1] += 1
    weights["unet"][CONV_NAME.removeprefix("unet/")] += 1
    return write_folder(folder, weights)


def test_a_fine_tune_gets_the_same_change_when_another_base_is_allowed(base: Path, tmp_path: Path) -> None:
    change = (torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) / 10).half()
    term = Term(delta=Delta({FC2_NAME: Dense(change), TO_K_NAME: Dense(torch.full((4, 3), 0.5).half())}))
    patch = make_patch([term], open_checkpoint(base))
    other = fine_tune(tmp_path / "other")
    report = apply_patch(
        patch, other, tmp_path / "out", undo=tmp_path / "undo.safetensors", allow_other_base=True
    )
    assert (report.exact, report.other_base) == (False, 1)
    assert {name: (found.base, found.result) for name, found in report.tensors.items()} == {
        FC2_NAME: (None, None),
        TO_K_NAME: ("bytes", "bytes"),
    }
    before, after = open_checkpoint(other), open_checkpoint(tmp_path / "out")
    assert torch.equal(after.read(FC2_NAME), before.read(FC2_NAME) + change)
    revert_patch(patch, tmp_path / "out", tmp_path / "back", undo=tmp_path / "undo.safetensors")
    assert contents(tmp_path / "back") == contents(other)


def test_where_another_base_is_allowed_other_shapes_and_a_second_time_are_still_refused(
    base: Path, tmp_path: Path
) -> None:
    patch = random_patch(base)
    apply_patch(patch, base, tmp_path / "once")
    with pytest.raises(PatchError, match="has this patch already"):
        apply_patch(patch, tmp_path / "once", tmp_path / "twice", allow_other_base=True)
    weights = small_weights()
    weights["text_encoder"][f"text_model.{FC2}"] = torch.zeros(3, 6).half()
    other = write_folder(tmp_path / "other", weights)
    with pytest.raises(PatchError, match="has shape"):
        apply_patch(patch, other, tmp_path / "out", allow_other_base=True)


def test_a_patch_remembers_the_licence_of_its_base(base: Path) -> None:
    assert "base_notes" not in random_patch(base).provenance
    (base / "README.md").write_text("---\nlicense: openrail\n---\n# Mine\n")
    assert random_patch(base).provenance["base_notes"] == {"title": "Mine", "license": "openrail"}


def test_a_second_application_is_refused(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    apply_patch(patch, base, tmp_path / "once")
    with pytest.raises(PatchError, match=r"has this patch already.*revert it first"):
        apply_patch(patch, tmp_path / "once", tmp_path / "twice")


def test_missing_tensors_and_other_shapes_are_reported_together(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    weights = small_weights()
    weights["unet"]["down_blocks.0.resnets.0.conv2.weight"] = weights["unet"].pop(
        CONV_NAME.removeprefix("unet/")
    )
    weights["unet"][TO_K_NAME.removeprefix("unet/")] = torch.zeros(4, 4).half()
    other = write_folder(tmp_path / "other", weights)
    with pytest.raises(PatchError) as caught:
        apply_patch(patch, other, tmp_path / "out")
    report = str(caught.value)
    assert f"no tensor {CONV_NAME!r} (nearest: 'unet/down_blocks.0.resnets.0.conv2.weight')" in report
    assert "has shape (4, 4); this patch was made for (4, 3)" in report


def test_a_second_copy_of_a_touched_component_is_refused(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME])
    file = weight_file(base, "text_encoder")
    file.with_name("model.fp16.safetensors").write_bytes(file.read_bytes())
    (base / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle of an untouched component")
    with pytest.raises(PatchError) as caught:
        apply_patch(patch, base, tmp_path / "out")
    assert len(caught.value.faults) == 2
    assert "model.fp16.safetensors" in str(caught.value)
    assert "pytorch_model.bin" in str(caught.value)


def test_a_record_that_the_base_does_not_lead_to_is_refused(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME])
    change = patch.changes[FC2_NAME]
    false = replace(patch, changes={FC2_NAME: replace(change, after=change.before)})
    with pytest.raises(PatchError, match="came out as"):
        apply_patch(false, base, tmp_path / "out")
    assert names_in(tmp_path) == ["base"]


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(base: Path, tmp_path: Path, strength: float) -> None:
    with pytest.raises(PatchError, match="a finite number was expected"):
        apply_patch(random_patch(base), base, tmp_path / "out", strength=strength)


def test_a_strength_that_leaves_the_range_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="half precision ends"):
        apply_patch(random_patch(base), base, tmp_path / "out", strength=1e9)
    assert names_in(tmp_path) == ["base"]


def test_existing_outputs_are_kept_unless_asked(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    (tmp_path / "undo").write_text("mine")
    with pytest.raises(SurgeryError, match="undo exists already"):
        apply_patch(patch, base, tmp_path / "out", undo=tmp_path / "undo")
    assert names_in(tmp_path) == ["base", "undo"]
    apply_patch(patch, base, tmp_path / "out", undo=tmp_path / "undo", overwrite=True)
    with pytest.raises(SurgeryError, match="out exists already"):
        apply_patch(patch, base, tmp_path / "out")


def test_outputs_inside_a_checkpoint_are_refused(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    with pytest.raises(CheckpointError, match="lie inside each other"):
        apply_patch(patch, base, base / "out")
    for inside in (base / "undo", tmp_path / "out" / "undo"):
        with pytest.raises(PatchError, match="a place beside it was expected"):
            apply_patch(patch, base, tmp_path / "out", undo=inside)


def test_text_keys_without_the_prefix_are_patched_in_their_own_spelling(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    weights = small_weights()
    weights["text_encoder"] = {
        key.removeprefix("text_model."): value for key, value in weights["text_encoder"].items()
    }
    short = write_folder(tmp_path / "short", weights)
    assert apply_patch(patch, short, tmp_path / "out").exact
    keys = load_file(weight_file(tmp_path / "out", "text_encoder")).keys()
    assert keys == load_file(weight_file(short, "text_encoder")).keys()


def test_metadata_of_the_input_are_kept(base: Path, tmp_path: Path) -> None:
    file = weight_file(base, "text_encoder")
    save_file(load_file(file), file, metadata={"format": "pt", "title": "mine"})
    apply_patch(random_patch(base), base, tmp_path / "out")
    header = open_checkpoint(tmp_path / "out").headers[weight_file(tmp_path / "out", "text_encoder")]
    assert header.metadata == {"format": "pt", "title": "mine"}


def test_the_base_is_never_written_to(base: Path, tmp_path: Path) -> None:
    before = contents(base)
    apply_patch(random_patch(base), base, tmp_path / "out", undo=tmp_path / "undo")
    assert contents(base) == before


def test_all_tensors_of_the_tiny_pipeline_can_be_patched(tiny_pipeline: Path, tmp_path: Path) -> None:
    names = sorted(open_checkpoint(tiny_pipeline).tensors)
    report = apply_patch(random_patch(tiny_pipeline, names), tiny_pipeline, tmp_path / "out")
    assert report.exact
    assert len(report.tensors) == len(names)


def test_names_of_the_support_patches_are_all_touched(base: Path) -> None:
    assert set(random_patch(base).changes) == set(NAMES)


def test_a_folder_of_other_files_is_never_replaced(base: Path, tmp_path: Path) -> None:
    patch, thesis = random_patch(base), tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="a folder of other files"):
        apply_patch(patch, base, thesis, undo=tmp_path / "undo", overwrite=True)
    assert (thesis / "chapter.tex").read_text() == "years of work"
    assert not (tmp_path / "undo").exists()


def test_a_refused_output_leaves_no_undo_file(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    apply_patch(patch, base, tmp_path / "out")
    with pytest.raises(SurgeryError, match="out exists already"):
        apply_patch(patch, base, tmp_path / "out", undo=tmp_path / "undo")
    assert not (tmp_path / "undo").exists()


def test_the_undo_file_cannot_take_the_place_of_the_output(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    with pytest.raises(PatchError, match="a place beside it"):
        apply_patch(patch, base, tmp_path / "out", undo=tmp_path / "out", overwrite=True)


def test_a_patch_of_another_family_is_refused_where_its_tensors_fit(base: Path, tmp_path: Path) -> None:
    patch = replace(random_patch(base, [FC2_NAME]), architecture="stable-diffusion-xl-v1-base")
    for allowed in (False, True):
        with pytest.raises(PatchError, match="this patch was made for a stable-diffusion-xl-v1-base"):
            apply_patch(patch, base, tmp_path / "out", allow_other_base=allowed)


def test_a_whole_model_beside_the_components_is_named(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (base / "v1-5-pruned.safetensors").write_bytes(weight_file(base, "vae").read_bytes())
    apply_patch(random_patch(base), base, tmp_path / "out")
    assert "v1-5-pruned.safetensors is no part of the folder's pipeline" in caplog.text


@pytest.mark.parametrize("step", ["write", "rename"])
def test_an_apply_that_fails_while_replacing_leaves_checkpoint_and_undo_of_one_patch(
    base: Path, tmp_path: Path, step: str
) -> None:
    first, second = random_patch(base, seed=1), random_patch(base, seed=2)
    out, undo = tmp_path / "out", tmp_path / "undo"
    apply_patch(first, base, out, undo=undo)

    def full(primitive: str, path: Path) -> None:
        if primitive == step and out.name in path.as_posix().split("/")[-1 if step == "rename" else -3]:
            raise OSError(28, "No space left on device")

    with pytest.raises(SurgeryError, match="No space left"), fault_hook(full):
        apply_patch(second, base, out, undo=undo, overwrite=True)
    revert_patch(first, out, tmp_path / "reverted", undo=undo)
    assert contents(tmp_path / "reverted") == contents(base)
