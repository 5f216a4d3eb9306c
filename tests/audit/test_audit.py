"""The audit as a whole: its record, its faults, its words for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.audit import AuditOptions, audit_checkpoints, audit_patch
from surgery.checkpoint import convert_checkpoint, open_checkpoint
from surgery.errors import CheckpointError, PatchError, SurgeryError
from surgery.patch import Patch, apply_patch, save_patch
from surgery.report.audit_record import AuditRecord, TensorRow
from tests.audit.folders import Tensors, attn2, changed, fc2, pair, weights
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, small_weights, write_folder
from tests.support.patches import random_patch
from tests.support.singles import sd1_tensors, write_single

NAME = f"text_encoder/{fc2(1)}"


def audit(folder: Path, before: Tensors, after: Tensors) -> AuditRecord:
    return audit_checkpoints(*pair(folder, before, after))


def row_of(record: AuditRecord, name: str) -> TensorRow:
    return next(row for row in record.tensors if row.name == name)


def one_element() -> Tensors:
    after = weights()
    after["text_encoder"][fc2(1)][2, 3] += 0.5
    return after


def test_one_changed_weight_is_found_and_nothing_else(tmp_path: Path) -> None:
    record = audit(tmp_path, weights(), one_element())
    touched = [row.name for row in record.tensors if row.state != "same"]
    assert touched == [NAME]
    row = row_of(record, NAME)
    assert (row.changed, row.rows, row.columns) == (1, (1, 16), (1, 64))
    assert row.largest == pytest.approx(0.5)
    assert row.structure == "block"
    assert row.relative == pytest.approx(0.5 / float(weights()["text_encoder"][fc2(1)].norm()), rel=1e-5)


def test_sums_of_components_and_cells_are_those_of_their_tensors(tmp_path: Path) -> None:
    after = changed(weights(), lambda name, weight: weight + 1 if "attn2.to_v" in name else weight)
    record = audit(tmp_path, weights(), after)
    unet = next(total for total in record.totals if total.component == "unet")
    mine = [row for row in record.tensors if row.component == "unet"]
    assert (unet.touched, unet.tensors) == (4, len(mine))
    assert unet.changed == sum(row.changed for row in mine)
    assert unet.norm**2 == pytest.approx(sum(row.norm**2 for row in mine))
    cells = [cell for cell in record.cells if cell.component == "unet"]
    assert sum(cell.tensors for cell in cells) == len(mine)
    assert [(cell.block, cell.role) for cell in cells if cell.touched] == [
        (f"down {level}", "cross_value") for level in range(4)
    ]


def test_values_that_are_no_numbers_are_a_fault(tmp_path: Path) -> None:
    after = weights()
    after["unet"]["conv_in.bias"][0] = float("nan")
    record = audit(tmp_path, weights(), after)
    assert not record.sound
    assert [finding.subject for finding in record.findings] == ["unet/conv_in.bias"]
    assert row_of(record, "unet/conv_in.bias").nonfinite == (0, 1)


def test_tensors_of_one_side_are_told_and_no_fault(tmp_path: Path) -> None:
    after = weights()
    del after["unet"]["conv_in.bias"]
    after["vae"]["decoder.conv_out.bias"] = torch.zeros(3)
    record = audit(tmp_path, weights(), after)
    assert {finding.kind: finding.subject for finding in record.findings} == {
        "missing": "unet/conv_in.bias",
        "added": "vae/decoder.conv_out.bias",
    }
    assert record.sound


def test_the_layout_of_either_side_changes_nothing(tiny_pipeline: Path, tmp_path: Path) -> None:
    patch = tmp_path / "p.safetensors"
    save_patch(random_patch(tiny_pipeline, [f"text_encoder/{fc2(3)}", f"unet/{attn2(0, 'to_k')}"]), patch)
    from surgery.patch import load_patch

    edited, single = tmp_path / "edited", tmp_path / "edited.safetensors"
    apply_patch(load_patch(patch), tiny_pipeline, edited)
    convert_checkpoint(open_checkpoint(edited), single)
    folders, mixed = audit_checkpoints(tiny_pipeline, edited), audit_checkpoints(tiny_pipeline, single)
    assert folders.tensors == mixed.tensors
    assert sum(row.state == "changed" for row in mixed.tensors) == 2


def test_the_record_is_json_and_says_the_same_twice(tmp_path: Path) -> None:
    first = audit(tmp_path, weights(), one_element())
    again = audit_checkpoints(tmp_path / "base", tmp_path / "edited")
    text = json.dumps(first.as_json(), allow_nan=False)
    assert text == json.dumps(again.as_json(), allow_nan=False)
    table: dict[str, Any] = json.loads(text)
    assert table["audit"] == 1
    assert table["sound"] is True
    assert [row["name"] for row in table["tensors"]] == sorted(row.name for row in first.tensors)


def test_two_families_are_refused(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "first", weights())
    second = write_folder(tmp_path / "second", small_weights())
    with pytest.raises(CheckpointError, match="of one family and size"):
        audit_checkpoints(first, second)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "small", small_weights())


def saved(patch: Patch, folder: Path) -> Path:
    save_patch(patch, folder / "patch.safetensors")
    return folder / "patch.safetensors"


def test_a_patch_with_its_base_is_audited_like_what_it_makes(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    apply_patch(patch, base, tmp_path / "edited")
    of_patch = audit_patch(saved(patch, tmp_path), base)
    of_pair = audit_checkpoints(base, tmp_path / "edited")
    for name in (FC2_NAME, TO_K_NAME, CONV_NAME):
        assert row_of(of_patch, name) == row_of(of_pair, name)
    assert of_patch.totals == of_pair.totals


def test_a_patch_alone_tells_what_it_records(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME])
    record = audit_patch(saved(patch, tmp_path))
    [row] = record.tensors
    change = patch.changes[FC2_NAME]
    assert (row.changed, row.largest, row.norm) == (change.changed, change.largest, change.norm)
    assert (row.relative, row.stored_as) == (None, ("LowRank",))
    assert row.spectrum is not None
    assert row.spectrum.rank == 2


def test_a_base_that_is_not_the_patch_s_is_refused(base: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", small_weights(seed=9))
    with pytest.raises(PatchError, match="this patch was made for"):
        audit_patch(saved(random_patch(base), tmp_path), other)


def test_words_need_a_base(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="--base"):
        audit_patch(saved(random_patch(base), tmp_path), None, AuditOptions(words=tmp_path / "w.txt"))


@pytest.fixture
def expected(base: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    patch = random_patch(base, [FC2_NAME])
    apply_patch(patch, base, tmp_path / "edited")
    yield saved(patch, tmp_path), tmp_path / "edited"


def test_an_expected_patch_that_is_in_is_no_fault(base: Path, expected: tuple[Path, Path]) -> None:
    patch, edited = expected
    record = audit_checkpoints(base, edited, AuditOptions(expect=patch))
    assert record.sound
    assert record.expected is not None
    assert record.expected["state"] == "after"


def test_an_expected_patch_that_is_missing_is_a_fault(base: Path, expected: tuple[Path, Path]) -> None:
    record = audit_checkpoints(base, base, AuditOptions(expect=expected[0]))
    assert not record.sound
    assert record.findings[0].message == "it is not in; expected it to be in"


def test_the_summary_says_what_and_how_much(tmp_path: Path) -> None:
    assert audit(tmp_path / "a", weights(), weights()).summary.startswith("Nothing was changed: all ")
    summary = audit(tmp_path / "b", weights(), one_element()).summary
    assert summary.startswith("1 of 24 tensors changed, 1 weight.")


def test_a_second_copy_that_was_not_looked_at_is_said(tmp_path: Path) -> None:
    first, second = pair(tmp_path, weights(), one_element())
    copy = second / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    copy.write_bytes((second / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    findings = audit_checkpoints(first, second).findings
    assert [finding.kind for finding in findings] == ["second-copy"]


def test_what_lies_beside_the_weights_is_looked_at_too(tmp_path: Path) -> None:
    before = write_single(tmp_path / "before.safetensors", sd1_tensors())
    broken = torch.full((5,), torch.nan)
    after = write_single(tmp_path / "after.safetensors", {**sd1_tensors(), "alphas_cumprod": broken})
    record = audit_checkpoints(before, after)
    assert record.claims[0].statement == "Nothing was changed but what lies beside the weights."
    assert record.summary.startswith("Nothing was changed but what lies beside the weights: all ")
    kinds = {finding.kind: finding for finding in record.findings}
    assert "the noise schedule (1 tensor)" in kinds["beside"].subject
    assert not record.sound
    assert kinds["not-finite"].message.startswith("5 elements")


def test_an_edit_below_half_precision_is_a_change(tmp_path: Path) -> None:
    name = TO_K_NAME.removeprefix("unet/")
    before, after = small_weights(torch.float32), small_weights(torch.float32)
    weight = after["unet"][name]
    after["unet"][name] = torch.nextafter(weight, weight + 1)
    record = audit(tmp_path, before, after)
    assert row_of(record, TO_K_NAME).state == "changed"
    rounded = small_weights(torch.float32)
    rounded["unet"][name] = weight.half().float()
    again = audit(tmp_path / "rounded", small_weights(torch.float32), rounded)
    assert row_of(again, TO_K_NAME).state == "rounded"
