"""Where tensors stand: told from their names alone."""

from pathlib import Path

import pytest

from surgery.anatomy.atlas import block_order, place_of
from surgery.checkpoint import open_checkpoint

UP = "unet/up_blocks.3.attentions.1.transformer_blocks.0"


@pytest.mark.parametrize(
    ("name", "block", "role"),
    [
        ("text_encoder/text_model.encoder.layers.10.mlp.fc2.weight", "layer 10", "mlp_out"),
        ("text_encoder_2/text_model.encoder.layers.31.self_attn.k_proj.bias", "layer 31", "self_key"),
        ("text_encoder/text_model.embeddings.token_embedding.weight", "embeddings", "token_embedding"),
        ("text_encoder/text_model.final_layer_norm.weight", "final", "norm"),
        ("text_encoder_2/text_projection.weight", "final", "projection"),
        (f"{UP}.attn2.to_v.weight", "up 3", "cross_value"),
        (f"{UP}.attn1.to_out.0.weight", "up 3", "self_out"),
        (f"{UP}.ff.net.0.proj.weight", "up 3", "mlp_in"),
        (f"{UP}.norm2.weight", "up 3", "norm"),
        ("unet/mid_block.attentions.0.proj_in.weight", "mid", "proj_in"),
        ("unet/down_blocks.0.resnets.1.time_emb_proj.weight", "down 0", "time"),
        ("unet/down_blocks.0.downsamplers.0.conv.weight", "down 0", "resample"),
        ("unet/conv_in.weight", "in", "conv"),
        ("unet/conv_norm_out.bias", "out", "norm"),
        ("unet/time_embedding.linear_1.weight", "time embedding", "time"),
        ("vae/encoder.mid_block.attentions.0.to_q.weight", "encoder mid", "self_query"),
        ("vae/decoder.up_blocks.2.resnets.0.conv_shortcut.weight", "decoder up 2", "shortcut"),
        ("vae/post_quant_conv.weight", "post quant", "conv"),
    ],
)
def test_block_and_role_follow_from_the_name(name: str, block: str, role: str) -> None:
    place = place_of(name)
    assert (place.block, place.role) == (block, role)


def test_every_tensor_of_a_stable_diffusion_has_a_role(tiny_pipeline: Path) -> None:
    names = open_checkpoint(tiny_pipeline).tensors
    assert [name for name in names if place_of(name).role == "other"] == []


def test_blocks_stand_in_the_order_of_the_signal() -> None:
    blocks = ["out", "up 3", "layer 10", "down 1", "mid", "layer 2", "in", "embeddings", "time embedding"]
    assert block_order(blocks) == [
        "embeddings",
        "time embedding",
        "in",
        "layer 2",
        "layer 10",
        "down 1",
        "mid",
        "up 3",
        "out",
    ]
    halves = ["decoder mid", "encoder out", "post quant", "quant", "encoder in", "decoder up 1"]
    assert block_order(halves) == [
        "encoder in",
        "encoder out",
        "quant",
        "post quant",
        "decoder mid",
        "decoder up 1",
    ]
