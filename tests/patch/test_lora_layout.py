"""A patch of low-rank changes is a LoRA file that loaders read, and comes back as the patch it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.delta.algebra import materialise
from surgery.errors import PatchError
from surgery.patch import (
    Patch,
    apply_patch,
    compose_patches,
    load_patch,
    patch_digest,
    save_patch,
)
from surgery.patch.file import _content_digest
from surgery.patch.kohya import FAMILIES, module_key
from surgery.patch.manifest import dump
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, small_weights, write_folder
from tests.support.generations import Generation, run_check
from tests.support.loras import BLOCK, Q_PROJ, each_generation, products
from tests.support.patches import random_patch
from tests.support.tiny import FC2

SD1 = FAMILIES["stable-diffusion-v1"]
KEY = module_key(FC2_NAME, SD1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def composed(base: Path) -> Patch:
    """Two terms on one text weight, of which one also changes a convolution."""
    first = random_patch(base, [FC2_NAME, CONV_NAME], seed=1)
    return compose_patches([first, random_patch(base, [FC2_NAME], seed=2)], base)


@pytest.fixture
def file(composed: Patch, tmp_path: Path) -> Path:
    save_patch(composed, tmp_path / "patch.safetensors")
    return tmp_path / "patch.safetensors"


def test_a_loader_finds_the_sum_of_the_terms(composed: Patch, file: Path) -> None:
    found = products(file)
    for name, change in composed.changes.items():
        forms = [term.delta.terms[name] for term in composed.terms if name in term.delta.terms]
        expected = sum(materialise(form) for form in forms)
        assert isinstance(expected, Tensor)
        got = found.pop(module_key(name, SD1)).reshape(expected.shape)
        assert tuple(change.shape) == tuple(open_checkpoint(file.parent / "base").entry(name).shape)
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert found.keys() == {module_key(TO_K_NAME, SD1)}  # the anchor
    assert not found[module_key(TO_K_NAME, SD1)].any()


def test_the_patch_comes_back_as_it_was(composed: Patch, file: Path) -> None:
    again = load_patch(file)
    assert patch_digest(again) == patch_digest(composed)
    assert again.changes == composed.changes
    for one, other in zip(again.terms, composed.terms, strict=True):
        assert one.delta.terms.keys() == other.delta.terms.keys()
        for name in one.delta.terms:
            assert torch.equal(one.delta.materialise(name), other.delta.materialise(name))


def test_one_alpha_serves_all_modules_and_the_header_is_kohyas(file: Path) -> None:
    stored = load_file(file)
    assert len({float(value) for key, value in stored.items() if key.endswith(".alpha")}) == 1
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(metadata["sdpatch.manifest"])["layout"] == "lora"


@pytest.mark.parametrize("other", [{"dense": True}, {"strength": 0.5}])
def test_what_no_lora_can_hold_is_no_lora(base: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    patch = random_patch(base, **other)
    save_patch(patch, tmp_path / "patch.safetensors")
    assert not any("lora" in key for key in load_file(tmp_path / "patch.safetensors"))
    assert load_patch(tmp_path / "patch.safetensors").changes == patch.changes


def tampered(file: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """The file with changed tensors and manifest, its content digest made to fit."""
    tensors = load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = dict(handle.metadata())
    manifest = json.loads(metadata["sdpatch.manifest"])
    change(tensors, manifest)
    metadata["sdpatch.manifest"] = dump(manifest)
    metadata["sdpatch.content"] = _content_digest(tensors, metadata)
    file.write_bytes(b"".join(bytes(chunk) for chunk in safetensors_chunks(tensors, metadata)))
    return file


def beyond(_: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    manifest["terms"][0]["forms"][FC2_NAME]["columns"] = [0, 99]


def odd_alpha(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{KEY}.alpha"] = torch.tensor(3.0)


def half(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{KEY}.lora_up.weight"] = tensors[f"{KEY}.lora_up.weight"].half()


def gone(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors[f"{KEY}.lora_down.weight"]


def carried(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{module_key(TO_K_NAME, SD1)}.lora_up.weight"] += 1


def surplus(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["lora_unet_conv_in.alpha"] = torch.tensor(4.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (beyond, "has columns 0 to 99 of 4, scaled by 1.0"),
        (odd_alpha, "scaled by 0.75"),
        (half, "has factors that are not fp32"),
        (gone, "lora_down.weight', which is missing"),
        (carried, "is not as the terms describe it"),
        (surplus, "'lora_unet_conv_in.alpha' belongs to no term"),
    ],
)
def test_a_spoilt_lora_is_refused(
    file: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(PatchError, match=message):
        load_patch(tampered(file, change))


@each_generation
def test_stock_diffusers_makes_the_edited_weights_of_the_patch_file_within_the_stated_bound(
    tiny_pipeline: Path, tmp_path: Path, generation: Generation
) -> None:
    patch = random_patch(tiny_pipeline, [FC2.format(5), Q_PROJ, f"{BLOCK}.attn2.to_v.weight"], size=0.2)
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    save_patch(patch, tmp_path / "patch.safetensors")
    seen = run_check(generation, "lora", tiny_pipeline, tmp_path / "edited", tmp_path / "patch.safetensors")
    assert set(seen["adapters"]) == {"text_encoder", "unet"}
    largest = max(change.largest for change in patch.changes.values())
    # factors, product and sum are rounded to half precision: a few times 2**-11 of numbers this large
    assert 0 < seen["apart"] <= 8 * 2.0**-11 * (largest + 1)
    assert seen["edit"] > 0.02
    assert seen["fused"] < seen["edit"] / 20
