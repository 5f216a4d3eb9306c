"""A patch file is believed only when all of it holds."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.delta import Delta, Dense, LowRank
from surgery.errors import PatchError, SurgeryError
from surgery.patch import Patch, Term, load_patch, make_patch, patch_digest, save_patch
from surgery.patch.file import _content_digest
from surgery.patch.manifest import dump
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, small_weights, write_folder
from tests.support.patches import random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    save_patch(random_patch(base, strength=0.75), tmp_path / "patch.safetensors")
    return tmp_path / "patch.safetensors"


def tamper(
    file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None], *, sign: bool = True
) -> None:
    """Rewrite a patch file with changed tensors and texts; signed anew, or left with the old digest."""
    tensors = load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = dict(handle.metadata())
    parsed = {key: json.loads(metadata[f"sdpatch.{key}"]) for key in ("manifest", "base", "edit")}
    change(tensors, parsed | {"metadata": metadata})
    metadata |= {f"sdpatch.{key}": dump(value) for key, value in parsed.items()}
    if sign:
        metadata["sdpatch.content"] = _content_digest(tensors, metadata)
    file.write_bytes(b"".join(bytes(chunk) for chunk in safetensors_chunks(tensors, metadata)))


def faults_after(
    file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
) -> tuple[str, ...]:
    tamper(file, change)
    with pytest.raises(PatchError) as caught:
        load_patch(file)
    assert all(str(file) in fault for fault in caught.value.faults)
    return caught.value.faults


def assert_same(first: Patch, second: Patch) -> None:
    assert first.changes == second.changes
    assert (first.architecture, first.roots) == (second.architecture, second.roots)
    assert first.provenance == second.provenance
    for left, right in zip(first.terms, second.terms, strict=True):
        assert (left.strength, left.source) == (right.strength, right.source)
        assert left.delta.terms.keys() == right.delta.terms.keys()
        for name in left.delta.terms:
            assert type(left.delta.terms[name]) is type(right.delta.terms[name])
            assert torch.equal(left.delta.materialise(name), right.delta.materialise(name))


def test_a_patch_comes_back_as_it_was(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    terms = [
        Term(
            delta=Delta({FC2_NAME: LowRank(torch.ones(3, 2).double(), torch.ones(2, 5))}),
            strength=0.1,
            source="a",
        ),
        Term(delta=Delta({TO_K_NAME: Dense(torch.ones(4, 3).bfloat16())}), source="b"),
    ]
    patch = make_patch(
        terms, checkpoint, {"recipe": "edits:\n- 'ü'\n", "seed": 7, "nested": {"list": [1, None]}}
    )
    save_patch(patch, tmp_path / "x")
    assert_same(load_patch(tmp_path / "x"), patch)


def test_equal_patches_are_equal_files(base: Path, tmp_path: Path) -> None:
    digests = {save_patch(random_patch(base), tmp_path / str(run)) for run in range(2)}
    assert len(digests) == 1
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_the_digest_is_the_sha256_of_the_file(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    digest = save_patch(patch, tmp_path / "x")
    assert digest == patch_digest(patch) == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


def test_the_header_names_base_recipe_seed_and_versions_but_no_time_and_place(file: Path) -> None:
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    edit = json.loads(metadata["sdpatch.edit"])
    assert edit["seed"] == 0
    assert edit["recipe"] == "edits: []\n"
    assert edit["versions"]["torch"] == version("torch")
    assert json.loads(metadata["sdpatch.base"])["roots"].keys() == {"text_encoder", "unet", "vae"}
    assert metadata["format"] == "pt"
    text = json.dumps(metadata)
    assert str(file.parent) not in text


def test_digests_before_and_after_are_those_of_the_weights(base: Path) -> None:
    patch = random_patch(base)
    found = open_checkpoint(base).fingerprint()
    assert patch.base.tensors == {name: found.tensors[name] for name in patch.changes}
    assert patch.base.roots == found.roots
    assert all(change.before != change.after for change in patch.changes.values())


def test_texts_that_other_tools_add_are_ignored(file: Path) -> None:
    tamper(file, lambda _, parsed: parsed["metadata"].update({"modelspec.title": "mine"}), sign=False)
    assert load_patch(file).provenance["seed"] == 0


@pytest.mark.parametrize("offset", [-1, -40])
def test_a_flipped_bit_in_the_data_is_noticed(file: Path, offset: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)
    with pytest.raises(PatchError, match="another digest"):
        load_patch(file)


def test_a_changed_text_is_noticed(file: Path) -> None:
    tamper(file, lambda _, parsed: parsed["edit"].update(seed=1), sign=False)
    with pytest.raises(PatchError, match="another digest"):
        load_patch(file)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PatchError, match="cut off"):
        load_patch(file)


def test_other_safetensors_files_are_no_patch(base: Path) -> None:
    with pytest.raises(PatchError, match=r"no patch of this program.*LoRA or a checkpoint"):
        load_patch(base / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_newer_version_is_refused_by_its_number(file: Path) -> None:
    tamper(file, lambda _, parsed: parsed["metadata"].update({"sdpatch.version": "2"}))
    with pytest.raises(PatchError, match=r"of version 2; this program knows those up to 1.*Update"):
        load_patch(file)


@pytest.mark.parametrize(("written", "read"), [("1", True), ("1.3", True), ("0", False), ("one", False)])
def test_minor_versions_are_read_as_their_major_and_what_is_none_is_refused(
    file: Path, written: str, read: bool
) -> None:
    tamper(file, lambda _, parsed: parsed["metadata"].update({"sdpatch.version": written}))
    if read:
        assert load_patch(file).changes
    else:
        with pytest.raises(PatchError, match=f"of version '{written}'; expected '1'"):
            load_patch(file)


def test_a_missing_tensor_is_named_with_the_nearest(file: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor], _: object) -> None:
        key = next(key for key in tensors if key.endswith("::down"))
        tensors[key.replace("::down", "::dawn")] = tensors.pop(key)

    faults = faults_after(file, rename)
    assert "::down', which is missing; nearest: '" in faults[0]


def test_a_surplus_tensor_is_refused(file: Path) -> None:
    faults = faults_after(file, lambda tensors, _: tensors.update({"0/unet/x::left": torch.ones(1)}))
    assert "'0/unet/x::left' belongs to no term" in faults[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(file: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor], _: object) -> None:
        next(iter(tensors.values()))[0, 0] = value

    assert "holds NaN or infinity" in faults_after(file, spoil)[0]


def test_wrong_shapes_of_several_tensors_are_reported_together(file: Path) -> None:
    def spoil(_: object, parsed: dict[str, Any]) -> None:
        parsed["manifest"]["changes"][FC2_NAME]["shape"] = [5, 3]
        parsed["manifest"]["changes"][CONV_NAME]["shape"] = [2, 2]

    faults = faults_after(file, spoil)
    assert len(faults) == 2
    assert f"{FC2_NAME!r} has shape (5, 3); the change is of shape (3, 5)" in "".join(faults)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": {"bytes": "short", "value16": "0" * 64}}, "has 'short' where a sha256 was expected"),
        ({"dtype": "I64"}, "is of type 'I64', which cannot be patched"),
        ({"shape": None}, FC2_NAME),
    ],
)
def test_a_change_that_is_none_names_its_tensor(file: Path, change: dict[str, Any], message: str) -> None:
    faults = faults_after(file, lambda _, parsed: parsed["manifest"]["changes"][FC2_NAME].update(change))
    assert message in faults[0]
    assert FC2_NAME in faults[0]


def test_digests_without_a_term_and_terms_without_a_digest_are_refused(file: Path) -> None:
    def spoil(_: object, parsed: dict[str, Any]) -> None:
        changes = parsed["manifest"]["changes"]
        changes["unet/other.weight"] = changes.pop(FC2_NAME)

    faults = faults_after(file, spoil)
    assert any(f"{FC2_NAME!r} is named by the terms, but not by the digests" in fault for fault in faults)
    assert any("'unet/other.weight' is named by the digests, but not" in fault for fault in faults)


def test_an_unknown_form_and_a_name_that_is_not_canonical_are_refused(file: Path) -> None:
    def spoil(_: object, parsed: dict[str, Any]) -> None:
        first, second, _third = parsed["manifest"]["terms"]
        for form in first["forms"].values():
            form["op"] = "set_row"
        second["forms"] = {"elsewhere/x": {"op": "add_dense", "index": "", "parts": ["values"]}}

    report = "".join(faults_after(file, spoil))
    assert "is changed by 'set_row'; nearest known operation: 'set_rows'" in report
    assert "'elsewhere/x' is no canonical tensor name" in report


@pytest.mark.parametrize("key", ["manifest", "base", "edit"])
def test_a_file_without_its_description_is_refused(file: Path, key: str) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = dict(handle.metadata())
    metadata[f"sdpatch.{key}"] = "3"
    metadata["sdpatch.content"] = _content_digest(tensors, metadata)
    file.write_bytes(b"".join(bytes(chunk) for chunk in safetensors_chunks(tensors, metadata)))
    with pytest.raises(PatchError, match="does not describe a patch"):
        load_patch(file)


def test_an_existing_file_is_kept_unless_asked(base: Path, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(SurgeryError, match="exists already"):
        save_patch(random_patch(base, seed=9), file)
    assert file.read_bytes() == before
    save_patch(random_patch(base, seed=9), file, overwrite=True)
    assert file.read_bytes() != before


def test_provenance_must_be_plain_json(base: Path, tmp_path: Path) -> None:
    patch = make_patch([], open_checkpoint(base), {"seed": float("nan")})
    with pytest.raises(PatchError, match="plain JSON"):
        save_patch(patch, tmp_path / "x")


def test_an_edit_that_does_not_fit_the_base_is_refused_with_all_its_faults(base: Path) -> None:
    terms = [
        Term(delta=Delta({FC2_NAME: Dense(torch.ones(5, 3))})),
        Term(delta=Delta({TO_K_NAME + "s": Dense(torch.ones(4, 3))})),
        Term(delta=Delta({CONV_NAME: Dense(torch.full((2, 2, 3, 3), torch.nan))}), strength=float("inf")),
    ]
    with pytest.raises(PatchError) as caught:
        make_patch(terms, open_checkpoint(base))
    report = str(caught.value)
    assert len(caught.value.faults) == 4
    assert "has shape (3, 5); the edit is of shape (5, 3)" in report
    assert f"Is it '{TO_K_NAME}'?" in report
    assert "holds NaN or infinity" in report
    assert "has the strength inf" in report


@pytest.mark.parametrize(
    ("size", "message"), [(1e5, "half precision ends at 65504"), (6e4, "leave the range")]
)
def test_a_change_out_of_range_is_refused(base: Path, size: float, message: str) -> None:
    weights = small_weights()
    weights["unet"] = {key: value * 0 + 3e4 for key, value in weights["unet"].items()}
    base = write_folder(base.parent / "large", weights)
    term = Term(delta=Delta({TO_K_NAME: Dense(torch.full((4, 3), size))}))
    with pytest.raises(PatchError, match=message):
        make_patch([term], open_checkpoint(base))
