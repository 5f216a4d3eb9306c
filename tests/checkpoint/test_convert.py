"""Folder to single file and back: the same tensors for us and for diffusers; patches fit either layout."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from surgery.checkpoint import Checkpoint, convert_checkpoint, open_checkpoint
from surgery.checkpoint.pipeline_files import FILES_KEY
from surgery.errors import CheckpointError, PatchError
from surgery.patch import apply_patch, make_patch, revert_patch, verify_patch
from tests.support.folders import contents
from tests.support.patches import random_patch
from tests.support.tiny import FC2

TO_K = "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
VAE_Q = "vae/encoder.mid_block.attentions.0.to_q.weight"


@pytest.fixture(scope="module")
def single(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    convert_checkpoint(open_checkpoint(tiny_pipeline), out)
    return out


def equal(left: Checkpoint, right: Checkpoint) -> bool:
    assert left.tensors.keys() == right.tensors.keys()
    return left.fingerprint() == right.fingerprint()


def test_both_layouts_hold_the_same_tensors(tiny_pipeline: Path, single: Path) -> None:
    folder, file = open_checkpoint(tiny_pipeline), open_checkpoint(single)
    assert file.layout == "single"
    assert file.architecture == folder.architecture == "stable-diffusion-v1"
    assert equal(folder, file)
    assert load_file(single)["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4


def test_a_folder_survives_the_way_there_and_back(tiny_pipeline: Path, single: Path, tmp_path: Path) -> None:
    convert_checkpoint(open_checkpoint(single), tmp_path / "back")
    assert equal(open_checkpoint(tiny_pipeline), open_checkpoint(tmp_path / "back"))
    before, after = (
        {path: text for path, text in contents(folder).items() if not path.endswith(".safetensors")}
        for folder in (tiny_pipeline, tmp_path / "back")
    )
    assert after == before


def test_diffusers_draws_the_same_from_the_file(tiny_pipeline: Path, single: Path) -> None:
    folder = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    file = StableDiffusionPipeline.from_single_file(
        str(single), config=str(tiny_pipeline), local_files_only=True, torch_dtype=torch.float32
    )
    for component in ("unet", "vae", "text_encoder"):
        found, expected = (getattr(p, component).state_dict() for p in (file, folder))
        expected = {key: tensor for key, tensor in expected.items() if not key.endswith("position_ids")}
        assert found.keys() >= expected.keys()
        assert all(torch.equal(found[key].float(), tensor.float()) for key, tensor in expected.items())


def test_a_patch_made_for_the_folder_goes_into_the_file_and_out_again(
    tiny_pipeline: Path, single: Path, tmp_path: Path
) -> None:
    patch = random_patch(tiny_pipeline, [FC2.format(3), TO_K, VAE_Q])
    edited, folder, back = tmp_path / "edited.safetensors", tmp_path / "folder", tmp_path / "back.safetensors"
    assert apply_patch(patch, single, edited, undo=tmp_path / "undo.safetensors").exact
    apply_patch(patch, tiny_pipeline, folder)
    assert equal(open_checkpoint(edited), open_checkpoint(folder))
    assert verify_patch(patch, edited).word == "after"
    revert_patch(patch, edited, back, undo=tmp_path / "undo.safetensors")
    assert back.read_bytes() == single.read_bytes()
    revert_patch(patch, edited, back, base=single, overwrite=True)
    assert back.read_bytes() == single.read_bytes()


def test_a_transposed_and_a_fused_tensor_are_patched_in_place(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    prefix = "conditioner.embedders.1.model."
    tensors = {
        f"{prefix}transformer.resblocks.0.attn.in_proj_weight": torch.randn(
            12, 4, generator=generator
        ).half(),
        f"{prefix}text_projection": torch.randn(4, 4, generator=generator).half(),
        f"{prefix}logit_scale": torch.ones(()),
    }
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, base)
    key = "text_encoder_2/text_model.encoder.layers.0.self_attn.k_proj.weight"
    projection = "text_encoder_2/text_projection.weight"
    apply_patch(random_patch(base, [key, projection]), base, out)
    before, after, edited = open_checkpoint(base), open_checkpoint(out), load_file(out)
    fused = edited[f"{prefix}transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.equal(fused[4:8], after.read(key))
    assert torch.equal(fused[:4], before.read(key.replace("k_proj", "q_proj")))
    assert torch.equal(edited[f"{prefix}text_projection"].T, after.read(projection))
    assert not torch.equal(after.read(projection), before.read(projection))
    assert not torch.equal(after.read(key), before.read(key))


def test_a_second_averaged_copy_of_a_touched_unet_is_refused(single: Path, tmp_path: Path) -> None:
    tensors = load_file(single)
    tensors["model_ema.diffusion_modelout2bias"] = torch.zeros(4)
    base = tmp_path / "ema.safetensors"
    save_file(tensors, base)
    patch = random_patch(base, [TO_K])
    with pytest.raises(PatchError, match="a second time"):
        apply_patch(patch, base, tmp_path / "out.safetensors")
    assert apply_patch(random_patch(base, [FC2.format(3)]), base, tmp_path / "out.safetensors").exact


def test_a_foreign_single_file_needs_a_folder_like_it(
    tiny_pipeline: Path, single: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(single), foreign)
    with pytest.raises(CheckpointError, match="--like"):
        convert_checkpoint(open_checkpoint(foreign), tmp_path / "back")
    convert_checkpoint(open_checkpoint(foreign), tmp_path / "back", like=tiny_pipeline)
    assert equal(open_checkpoint(tiny_pipeline), open_checkpoint(tmp_path / "back"))


@pytest.mark.parametrize(
    "path", ["../escape.json", "/etc/passwd", "unet/../../x", "tokenizer/a/b", "other/config.json", "unet/"]
)
def test_files_outside_of_the_folder_are_refused(single: Path, tmp_path: Path, path: str) -> None:
    crafted = tmp_path / "crafted.safetensors"
    files = {"model_index.json": "{}", path: "text"}
    save_file(load_file(single), crafted, metadata={FILES_KEY: json.dumps(files)})
    with pytest.raises(CheckpointError, match="names files outside"):
        convert_checkpoint(open_checkpoint(crafted), tmp_path / "back")
    assert [item.name for item in tmp_path.iterdir()] == ["crafted.safetensors"]


def test_what_is_no_stable_diffusion_is_refused(tmp_path: Path) -> None:
    save_file({"lora_unet.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="holds no Stable Diffusion"):
        open_checkpoint(tmp_path / "lora.safetensors")


def test_a_tensor_without_a_place_is_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    convert_like(tiny_pipeline, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "controlnet.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unet/controlnet\.weight.*has no place"):
        convert_checkpoint(open_checkpoint(folder), tmp_path / "out.safetensors")


def convert_like(source: Path, out: Path) -> None:
    apply_patch(make_patch([], open_checkpoint(source)), source, out)
