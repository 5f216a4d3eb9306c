"""A patch as weights that ComfyUI sets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surgery.checkpoint import open_checkpoint
from surgery.errors import PatchError
from surgery.export import Knobs, export_patch
from tests.support.patches import random_patch
from tests.support.tiny import FC2

# canonical names, and ComfyUI's own (shared/formats.md 1a: raw names are those of its model)
KEYS = {
    FC2.format(3): "text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc2.set_weight",
    "text_encoder/text_model.embeddings.token_embedding.weight": (
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.set_weight"
    ),
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.set_weight"
    ),
    "unet/conv_norm_out.weight": "diffusion_model.out.0.set_weight",
    "unet/conv_in.bias": "diffusion_model.input_blocks.0.0.bias.set_weight",
}
BIAS, VAE = FC2.format(3).replace("weight", "bias"), "vae/decoder.conv_in.weight"


def test_every_weight_stands_whole_under_comfyui_s_own_name(tiny_pipeline: Path, tmp_path: Path) -> None:
    patch, base = random_patch(tiny_pipeline, list(KEYS), dense=True), open_checkpoint(tiny_pipeline)
    report = export_patch(patch, tiny_pipeline, tmp_path / "comfy.safetensors", to="comfy")
    stored = load_file(tmp_path / "comfy.safetensors")
    assert stored.keys() == set(KEYS.values())
    for name, key in KEYS.items():
        assert torch.equal(stored[key], patch.edited(name, base.read(name)))
    assert report.exact


def test_what_comfyui_cannot_set_is_named_with_the_reason(tiny_pipeline: Path, tmp_path: Path) -> None:
    patch = random_patch(tiny_pipeline, [FC2.format(3), BIAS, VAE])
    with pytest.raises(PatchError) as caught:
        export_patch(patch, tiny_pipeline, tmp_path / "out", to="comfy")
    assert BIAS in str(caught.value)
    assert "does not reach the vae" in str(caught.value)
    report = export_patch(patch, tiny_pipeline, tmp_path / "out", to="comfy", knobs=Knobs(partial=True))
    assert report.left_out.keys() == {BIAS, VAE}
    assert not report.exact
