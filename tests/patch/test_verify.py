"""Verification tells before, after and neither apart, tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.digest import tensor_digest
from surgery.delta import Delta, Places, Replace
from surgery.errors import PatchError
from surgery.patch import Patch, Term, apply_patch, make_patch, revert_patch, verify_patch
from tests.support.folders import (
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


@pytest.fixture
def patch(base: Path) -> Patch:
    return random_patch(base)


@pytest.fixture
def edited(base: Path, patch: Patch, tmp_path: Path) -> Path:
    apply_patch(patch, base, tmp_path / "edited")
    return tmp_path / "edited"


def change_weight(folder: Path, component: str, key: str) -> None:
    file = weight_file(folder, component)
    tensors = load_file(file)
    tensors[key].view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_base_is_before(patch: Patch, base: Path) -> None:
    report = verify_patch(patch, base)
    assert report.word == "before"
    assert {state.word for state in report.tensors.values()} == {"before"}
    assert report.untouched == {"text_encoder": "bytes", "unet": "bytes", "vae": "bytes"}


def test_the_edited_checkpoint_is_after(patch: Patch, edited: Path) -> None:
    report = verify_patch(patch, edited)
    assert report.word == "after"
    assert {state.word for state in report.tensors.values()} == {"after"}
    assert report.untouched == {"text_encoder": "bytes", "unet": "bytes", "vae": "bytes"}


def test_a_patch_that_is_half_there_is_neither(patch: Patch, base: Path, edited: Path) -> None:
    weight_file(edited, "unet").write_bytes(weight_file(base, "unet").read_bytes())
    report = verify_patch(patch, edited)
    assert report.word == "neither"
    assert report.tensors[FC2_NAME].word == "after"
    assert report.tensors[TO_K_NAME].word == "before"


def test_a_touched_tensor_with_other_numbers_is_neither(patch: Patch, edited: Path) -> None:
    change_weight(edited, "text_encoder", f"text_model.{FC2}")
    report = verify_patch(patch, edited)
    assert report.word == "neither"
    assert {name: state.word for name, state in report.tensors.items()} == {
        name: "neither" if name == FC2_NAME else "after" for name in NAMES
    }


@pytest.mark.parametrize(
    ("component", "key"),
    [("vae", "decoder.conv_in.weight"), ("text_encoder", "text_model.encoder.layers.0.mlp.fc2.bias")],
)
def test_an_untouched_tensor_that_differs_names_its_component(
    patch: Patch, edited: Path, component: str, key: str
) -> None:
    change_weight(edited, component, key)
    report = verify_patch(patch, edited)
    assert report.word == "neither"
    assert {name for name, agreement in report.untouched.items() if agreement is None} == {component}
    assert {state.word for state in report.tensors.values()} == {"after"}


def test_a_copy_in_single_precision_agrees_in_value(patch: Patch, edited: Path) -> None:
    for component in ("text_encoder", "unet", "vae"):
        file = weight_file(edited, component)
        tensors = {key: value.float() for key, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    report = verify_patch(patch, edited)
    assert report.word == "after"
    assert {state.after for state in report.tensors.values()} == {"value16"}
    assert set(report.untouched.values()) == {"value16"}


def test_a_tensor_that_is_not_there_is_neither(patch: Patch, edited: Path) -> None:
    file = weight_file(edited, "unet")
    tensors = load_file(file)
    del tensors[TO_K_NAME.removeprefix("unet/")]
    save_file(tensors, file, metadata={"format": "pt"})
    report = verify_patch(patch, edited)
    assert report.tensors[TO_K_NAME].word == "neither"
    assert report.word == "neither"


def test_a_change_too_small_to_round_is_both(base: Path) -> None:
    # fp16 around 1 has a spacing of 2**-10; the change is far below
    patch = random_patch(base, [TO_K_NAME], size=1e-7)
    assert patch.changes[TO_K_NAME].changed == 0
    assert verify_patch(patch, base).word == "both"


def test_the_report_is_plain_data(patch: Patch, edited: Path) -> None:
    data = verify_patch(patch, edited).as_json()
    assert json.loads(json.dumps(data)) == data
    assert data["state"] == "after"
    tensors = data["tensors"]
    assert isinstance(tensors, dict)
    assert tensors[FC2_NAME] == {"state": "after", "before": None, "after": "bytes"}


def test_numbers_that_agree_only_when_rounded_are_said_to(patch: Patch, base: Path) -> None:
    file = weight_file(base, "text_encoder")
    tensors = load_file(file)
    tensors[f"text_model.{FC2}"][0, 0] = torch.tensor(0.0)  # it was -0.0
    save_file(tensors, file, metadata={"format": "pt"})
    assert verify_patch(patch, base).tensors[FC2_NAME].before == "value16"


def test_a_second_copy_of_an_edited_component_is_told(patch: Patch, edited: Path, base: Path) -> None:
    plain = weight_file(edited, "text_encoder")
    copy = plain.with_name(plain.name.replace(".safetensors", ".fp16.safetensors"))
    copy.write_bytes(weight_file(base, "text_encoder").read_bytes())
    report = verify_patch(patch, edited)
    assert report.word == "neither"
    assert report.surplus == (copy,)


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """A base in single precision whose weights no half-precision number holds."""
    return write_folder(tmp_path / "master", small_weights(torch.float32))


@pytest.fixture
def half(master: Path, tmp_path: Path) -> Path:
    """Its copy in half precision."""
    weights = small_weights(torch.float32)
    halves = {
        component: {key: one.half() if one.is_floating_point() else one for key, one in tensors.items()}
        for component, tensors in weights.items()
    }
    return write_folder(tmp_path / "half", halves)


def test_a_half_precision_copy_with_the_patch_is_after(master: Path, half: Path, tmp_path: Path) -> None:
    patch = random_patch(master, size=3e-3)
    assert verify_patch(patch, half).word == "before"
    report = apply_patch(patch, half, tmp_path / "out")
    assert {tensor.result for tensor in report.tensors.values()} == {"value16"}
    assert verify_patch(patch, tmp_path / "out").word == "after"
    with pytest.raises(PatchError, match="has this patch already"):
        apply_patch(patch, tmp_path / "out", tmp_path / "twice")
    revert_patch(patch, tmp_path / "out", tmp_path / "reverted", base=half)
    assert contents(tmp_path / "reverted") == contents(half)


def test_rounding_before_and_after_adding_are_told_apart(master: Path, tmp_path: Path) -> None:
    patch = random_patch(master, size=3e-3)
    apply_patch(patch, master, tmp_path / "edited")
    rounded = {name: open_checkpoint(tmp_path / "edited").read(name).half() for name in patch.changes}
    records = {name: tensor_digest(name, one).value16 for name, one in rounded.items()}
    # the records differ somewhere: each is the outcome of another order of roundings
    assert any(records[name] != change.half for name, change in patch.changes.items())
    assert all(records[name] == change.after.value16 for name, change in patch.changes.items())


def test_a_patched_master_that_is_then_rounded_is_after_too(master: Path, half: Path, tmp_path: Path) -> None:
    patch = random_patch(master, size=3e-3)
    apply_patch(patch, master, tmp_path / "edited")
    for component in ("text_encoder", "unet", "vae"):
        file = weight_file(tmp_path / "edited", component)
        tensors = {
            key: one.half() if one.is_floating_point() else one for key, one in load_file(file).items()
        }
        save_file(tensors, weight_file(half, component), metadata={"format": "pt"})
    assert verify_patch(patch, half).word == "after"
    with pytest.raises(PatchError, match="has this patch already"):
        apply_patch(patch, half, tmp_path / "twice", allow_other_base=True)


def test_other_bytes_in_the_patch_s_own_precision_are_no_outcome(master: Path, tmp_path: Path) -> None:
    """The patch changes less than half precision shows; what is rounded to half is neither side's bytes."""
    weight = open_checkpoint(master).read(FC2_NAME)
    tiny = Replace(Places("all", tuple(weight.shape)), torch.nextafter(weight, weight + 1))
    patch = make_patch([Term(delta=Delta({FC2_NAME: tiny}))], open_checkpoint(master))
    other = write_folder(tmp_path / "other", small_weights(torch.float32))
    tensors = load_file(weight_file(other, "text_encoder"))
    tensors[f"text_model.{FC2}"] = weight.half().float()
    save_file(tensors, weight_file(other, "text_encoder"), metadata={"format": "pt"})
    state = verify_patch(patch, other).tensors[FC2_NAME]
    assert (state.word, state.before) == ("before", "value16")
