"""Fingerprints say the same of the same weights, and something else of others."""

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.checkpoint import open_checkpoint, tensor_digest
from tests.support.folders import FC2, FC2_NAME, small_weights, write_folder

NAME = "unet/x.weight"


def sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def test_digests_are_the_sha256_of_name_type_shape_and_bytes() -> None:
    digest = tensor_digest(NAME, torch.tensor([[1.0, -0.0]]))
    # 1.0 and -0.0 as little-endian float32; as half precision 1.0 is 0x3C00 and zero has no sign
    assert digest.bytes == sha(b"unet/x.weight\0F32\x001,2\0" + struct.pack("<ff", 1.0, -0.0))
    assert digest.value16 == sha(b"unet/x.weight\0F16\x001,2\0" + b"\x00\x3c\x00\x00")


def test_integers_have_one_digest() -> None:
    digest = tensor_digest(NAME, torch.tensor(3))
    assert digest.bytes == digest.value16 == sha(b"unet/x.weight\0I64\0\0" + struct.pack("<q", 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value16_sees_no_sign_of_zero_but_bytes_does(dtype: torch.dtype) -> None:
    plus = tensor_digest(NAME, torch.tensor([0.0, 2.0], dtype=dtype))
    minus = tensor_digest(NAME, torch.tensor([-0.0, 2.0], dtype=dtype))
    assert plus.value16 == minus.value16
    assert plus.bytes != minus.bytes


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=8))
def test_half_and_single_precision_copies_have_one_value16(values: list[float]) -> None:
    half = torch.tensor(values, dtype=torch.float16)
    assert tensor_digest(NAME, half).value16 == tensor_digest(NAME, half.float()).value16
    assert tensor_digest(NAME, half).bytes != tensor_digest(NAME, half.float()).bytes


def test_name_shape_and_content_all_count() -> None:
    ones = torch.ones(2, 3)
    digests = {
        tensor_digest(NAME, ones).value16,
        tensor_digest("unet/y.weight", ones).value16,
        tensor_digest(NAME, ones.reshape(3, 2)).value16,
        tensor_digest(NAME, ones * 2).value16,
    }
    assert len(digests) == 4


def test_a_transposed_view_has_the_digest_of_its_values() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(NAME, matrix.T) == tensor_digest(NAME, matrix.T.contiguous())


def test_a_checkpoint_and_its_single_precision_copy_have_one_value16(tmp_path: Path) -> None:
    half = small_weights()
    single = {
        component: {
            key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
        }
        for component, tensors in half.items()
    }
    first = open_checkpoint(write_folder(tmp_path / "half", half)).fingerprint()
    second = open_checkpoint(write_folder(tmp_path / "single", single)).fingerprint()
    assert first.tensors.keys() == second.tensors.keys()
    for component in ("text_encoder", "unet", "vae"):
        assert first.roots[component].value16 == second.roots[component].value16
        assert first.roots[component].bytes != second.roots[component].bytes


def test_keys_without_the_prefix_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    short = small_weights()
    short["text_encoder"] = {
        key.removeprefix("text_model."): value for key, value in short["text_encoder"].items()
    }
    first = open_checkpoint(write_folder(tmp_path / "long", small_weights())).fingerprint()
    second = open_checkpoint(write_folder(tmp_path / "short", short)).fingerprint()
    assert first == second


def test_a_changed_weight_changes_its_component_only(tmp_path: Path) -> None:
    weights = small_weights()
    before = open_checkpoint(write_folder(tmp_path / "before", weights)).fingerprint()
    weights["text_encoder"][f"text_model.{FC2}"][1, 1] += 1
    after = open_checkpoint(write_folder(tmp_path / "after", weights)).fingerprint()
    assert {name for name in before.tensors if before.tensors[name] != after.tensors[name]} == {FC2_NAME}
    assert {part for part in before.roots if before.roots[part] != after.roots[part]} == {"text_encoder"}


def test_a_component_root_is_the_sha256_of_its_sorted_tensors(tmp_path: Path) -> None:
    found = open_checkpoint(write_folder(tmp_path / "x", small_weights())).fingerprint()
    names = sorted(name for name in found.tensors if name.startswith("unet/"))
    lines = "".join(f"{name}\0{found.tensors[name].bytes}\n" for name in names)
    assert found.roots["unet"].bytes == sha(lines.encode())
