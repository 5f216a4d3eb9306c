"""Verification tells before, after and neither apart, tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.patch import Patch, apply_patch, verify_patch
from tests.support.folders import FC2, FC2_NAME, TO_K_NAME, small_weights, weight_file, write_folder
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
