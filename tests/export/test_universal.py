"""A patch as a LoRA: what stands in the file, and what stock diffusers of two generations make of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Dense, Places, Replace
from surgery.errors import PatchError, SurgeryError
from surgery.export import ExportReport, Knobs, export_patch
from surgery.patch import Patch, Term, apply_patch, load_patch, make_patch, patch_digest, save_patch
from surgery.patch.kohya import FAMILIES, module_key
from tests.support.folders import CONV_NAME, FC2_NAME, PROJ_IN, TO_K_NAME, small_weights, write_folder
from tests.support.generations import Generation, run_check
from tests.support.loras import BLOCK, Q_PROJ, each_generation, products
from tests.support.patches import random_patch
from tests.support.tiny import FC2

SD1 = FAMILIES["stable-diffusion-v1"]
BIAS = "text_encoder/text_model.encoder.layers.0.mlp.fc2.bias"
VAE = "vae/decoder.conv_in.weight"


def lora(patch: Patch, base: Path, out: Path, **knobs: Any) -> ExportReport:
    return export_patch(patch, base, out, to="universal-lora", knobs=Knobs(**knobs))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def test_the_products_in_the_file_are_the_patch(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    report = lora(patch, base, tmp_path / "lora.safetensors")
    found = products(tmp_path / "lora.safetensors")
    assert found.keys() == {module_key(name, SD1) for name in patch.changes}
    for name in patch.changes:
        assert torch.equal(
            found[module_key(name, SD1)], patch.added(name, open_checkpoint(base).read(name))[0].double()
        )
    assert report.exact
    assert set(report.errors.values()) == {0.0}


def test_a_file_for_the_text_encoder_alone_has_an_anchor_of_zeros(base: Path, tmp_path: Path) -> None:
    report = lora(random_patch(base, [FC2_NAME]), base, tmp_path / "lora.safetensors")
    found = products(tmp_path / "lora.safetensors")
    anchor = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert found.keys() == {"lora_te_text_model_encoder_layers_0_mlp_fc2", anchor}
    assert found[anchor].shape == (4, 3)
    assert not found[anchor].any()
    assert report.modules == 2


def test_every_module_has_three_tensors_in_half_precision_and_one_alpha(base: Path, tmp_path: Path) -> None:
    lora(random_patch(base), base, tmp_path / "lora.safetensors")
    stored = load_file(tmp_path / "lora.safetensors")
    modules = {key.partition(".")[0] for key in stored}
    parts = ("lora_up.weight", "lora_down.weight", "alpha")
    assert stored.keys() == {f"{module}.{part}" for module in modules for part in parts}
    alphas = [stored[f"{module}.alpha"] for module in modules]
    assert all(alpha.ndim == 0 and alpha.dtype == torch.float32 for alpha in alphas)
    assert len({alpha.item() for alpha in alphas}) == 1
    factors = [tensor for key, tensor in stored.items() if not key.endswith("alpha")]
    assert {tensor.dtype for tensor in factors} == {torch.float16}


def test_kernels_travel_in_the_down_factor(base: Path, tmp_path: Path) -> None:
    lora(random_patch(base, [CONV_NAME]), base, tmp_path / "lora.safetensors")
    stored = load_file(tmp_path / "lora.safetensors")
    key = module_key(CONV_NAME, SD1)
    rank = stored[f"{key}.lora_down.weight"].shape[0]
    assert stored[f"{key}.lora_up.weight"].shape == (2, rank, 1, 1)
    assert stored[f"{key}.lora_down.weight"].shape == (rank, 2, 3, 3)


def test_a_bounded_rank_is_kept_and_its_error_stated(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, dense=True)
    report = lora(patch, base, tmp_path / "lora.safetensors", rank=1)
    found = products(tmp_path / "lora.safetensors")
    checkpoint = open_checkpoint(base)
    for name, error in report.errors.items():
        weight = checkpoint.read(name)
        loaded = (weight.double() + found[module_key(name, SD1)]).numpy().astype(np.float16)
        difference = np.abs(loaded.astype(np.float64) - patch.edited(name, weight).double().numpy())
        assert error == difference.max()
        assert error > 0
    assert not report.exact
    with safe_open(tmp_path / "lora.safetensors", "pt") as handle:
        stated = json.loads(handle.metadata()["sdpatch.export"])
    assert stated["exact"] is False
    assert {name: entry["largest_error"] for name, entry in stated["tensors"].items()} == report.errors


def test_the_header_says_what_kohya_and_modelspec_ask_for(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME])
    lora(patch, base, tmp_path / "lora.safetensors")
    with safe_open(tmp_path / "lora.safetensors", "pt") as handle:
        metadata = handle.metadata()
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_network_module"] == "networks.lora"
    # ranks 3 for the 3×5 change: equal ranks, alpha the rank
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3.0")
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(metadata["sdpatch.export"])["patch"] == patch_digest(patch)
    assert "lora_adapter_metadata" not in metadata  # diffusers would read ranks from it and fail
    raw = (tmp_path / "lora.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(raw[8 + length :]).hexdigest()}"


def test_equal_exports_are_equal_files(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    for run in range(2):
        lora(patch, base, tmp_path / f"{run}.safetensors")
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_a_patch_that_only_partly_fits_is_refused_with_every_tensor(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME, BIAS, VAE])
    with pytest.raises(PatchError) as caught:
        lora(patch, base, tmp_path / "lora.safetensors")
    assert len(caught.value.faults) == 2
    assert BIAS in str(caught.value)
    assert VAE in str(caught.value)
    assert not (tmp_path / "lora.safetensors").exists()


def test_a_partial_export_records_what_it_leaves_out(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME, BIAS, VAE])
    report = lora(patch, base, tmp_path / "lora.safetensors", partial=True)
    assert report.errors == {FC2_NAME: 0.0}
    assert report.left_out.keys() == {BIAS, VAE}
    assert not report.exact
    with safe_open(tmp_path / "lora.safetensors", "pt") as handle:
        stated = json.loads(handle.metadata()["sdpatch.export"])
    assert stated["left_out"] == report.left_out
    assert stated["tensors"].keys() == {FC2_NAME}


def test_a_partial_export_of_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="carries none of the 1 tensors"):
        lora(random_patch(base, [VAE]), base, tmp_path / "lora.safetensors", partial=True)
    assert not (tmp_path / "lora.safetensors").exists()


@pytest.fixture
def beyond(base: Path) -> Patch:
    """New values of which one is no sum of the old one and a half-precision number: 0.1 from about 1000."""
    weights = small_weights()
    weights["unet"][TO_K_NAME.removeprefix("unet/")][0, 0] = 1000.5
    folder = write_folder(base.parent / "far", weights)
    old = open_checkpoint(folder).read(TO_K_NAME)
    new = old.clone()
    new[0, 0] = 0.1
    return make_patch(
        [Term(delta=Delta({TO_K_NAME: Replace(Places("all", (4, 3)), new)}))], open_checkpoint(folder)
    )


def test_values_out_of_reach_are_refused_or_met_nearly_when_asked(beyond: Patch, tmp_path: Path) -> None:
    far = tmp_path / "far"
    with pytest.raises(PatchError, match=r"1 of its new values cannot be reached.*--nearest"):
        lora(beyond, far, tmp_path / "lora.safetensors")
    report = lora(beyond, far, tmp_path / "lora.safetensors", nearest=True)
    # between 512 and 1024 half-precision numbers lie 0.5 apart: 1000.5 - 1000.5 = 0 is the nearest to 0.1
    assert report.errors[TO_K_NAME] == float(torch.tensor(0.1).half())


def test_other_arguments_that_cannot_be_are_refused(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    with pytest.raises(PatchError, match="a whole number from 1"):
        lora(patch, base, tmp_path / "lora.safetensors", rank=0)
    with pytest.raises(PatchError, match="skipped by diffusers"):
        lora(patch, base, tmp_path / "checkpoint.safetensors")
    with pytest.raises(PatchError, match=r"limit is 0 MB.*bounded rank"):
        lora(patch, base, tmp_path / "lora.safetensors", limit_bytes=10)
    with pytest.raises(PatchError, match="this patch was made for"):
        lora(patch, write_folder(tmp_path / "other", small_weights(seed=4)), tmp_path / "lora.safetensors")


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    weights = small_weights()
    del weights["unet"][PROJ_IN]
    base = write_folder(tmp_path / "other", weights)
    with pytest.raises(PatchError, match="for a unknown; LoRA files and the like exist for stable-di"):
        lora(random_patch(base, [TO_K_NAME]), base, tmp_path / "lora.safetensors")


def test_a_change_too_large_for_a_selector_is_refused(tmp_path: Path) -> None:
    weights = small_weights()
    weights["unet"][CONV_NAME.removeprefix("unet/")] = torch.zeros(64, 64, 1, 1).half()
    base = write_folder(tmp_path / "base", weights)
    # ranks 64 and 3 become 64 and 4 with alpha 4; the selector carries 64 / 4, and 16 × 5000 is beyond fp16
    changes = {CONV_NAME: torch.full((64, 64, 1, 1), 5000.0), TO_K_NAME: torch.ones(4, 3)}
    delta = Delta({name: Dense(change) for name, change in changes.items()})
    patch = make_patch([Term(delta=delta)], open_checkpoint(base))
    with pytest.raises(PatchError, match=r"reaches 5e\+03, too large for a LoRA"):
        lora(patch, base, tmp_path / "lora.safetensors")


def test_an_existing_file_is_kept_unless_asked(base: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_text("mine")
    with pytest.raises(SurgeryError, match="exists already"):
        lora(random_patch(base), base, tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").read_text() == "mine"


EDITS = {
    "fc2 of eleven blocks": [FC2.format(layer) for layer in range(11)],
    "fc2, attention and convolutions": [
        FC2.format(5),
        Q_PROJ,
        f"{BLOCK}.attn2.to_k.weight",
        f"{BLOCK}.attn2.to_v.weight",
        "unet/down_blocks.1.resnets.0.conv1.weight",
        "unet/down_blocks.1.attentions.0.proj_in.weight",
    ],
}


@each_generation
@pytest.mark.parametrize("names", EDITS.values(), ids=EDITS.keys())
def test_stock_diffusers_makes_the_weights_and_the_picture_of_the_edited_checkpoint(
    tiny_pipeline: Path, tmp_path: Path, generation: Generation, names: list[str]
) -> None:
    patch = random_patch(tiny_pipeline, names, size=0.2)
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    lora(patch, tiny_pipeline, tmp_path / "lora.safetensors")
    seen = run_check(generation, "lora", tiny_pipeline, tmp_path / "edited", tmp_path / "lora.safetensors")
    components = {name.split("/")[0] for name in names} | {"unet"}  # the anchor is in the U-Net
    assert set(seen["adapters"]) == components
    assert seen["weights"] == 0  # fused: every tensor of the pipeline to the bit
    assert seen["fused"] == 0  # and so the picture
    assert seen["edit"] > 0.02  # which the edit does change
    # not fused, the layer adds W x and D x without the rounding of W + D to half precision
    assert seen["loaded"] < seen["edit"] / 20


@each_generation
def test_the_patch_itself_works_in_both_generations(
    tiny_pipeline: Path, tmp_path: Path, generation: Generation
) -> None:
    patch = random_patch(tiny_pipeline, EDITS["fc2, attention and convolutions"])
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    save_patch(patch, tmp_path / "patch.safetensors")
    assert load_patch(tmp_path / "patch.safetensors").changes == patch.changes
    seen = run_check(
        generation, "applied", tiny_pipeline, tmp_path / "edited", tmp_path / "patch.safetensors"
    )
    assert seen == {"inside": 0, "outside": 0}
