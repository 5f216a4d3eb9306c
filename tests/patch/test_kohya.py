"""Kohya's names: which tensors can travel under them, and what must stand beside them."""

import pytest

from surgery.patch.kohya import FAMILIES, companions, module_key, unexportable
from tests.support.folders import FC2 as TEXT_FC2
from tests.support.loras import BLOCK, Q_PROJ
from tests.support.tiny import FC2

SD1 = FAMILIES["stable-diffusion-v1"]
ANCHOR = SD1.anchor


def test_attention_of_the_text_encoder_brings_its_three_siblings() -> None:
    layer = Q_PROJ.removesuffix("q_proj.weight")
    assert companions([Q_PROJ], SD1) == {ANCHOR} | {
        f"{layer}{part}.weight" for part in ("k_proj", "v_proj", "out_proj")
    }
    assert companions([ANCHOR, FC2.format(3)], SD1) == set()
    assert companions([f"{BLOCK}.attn2.to_q.weight"], SD1) == {ANCHOR}


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("text_encoder/text_model.encoder.layers.0.mlp.fc2.bias", (3,), "linear and convolution"),
        ("text_encoder/text_model.final_layer_norm.weight", (3,), "linear and convolution"),
        ("text_encoder/text_model.embeddings.token_embedding.weight", (9, 3), "embeddings"),
        ("unet/conv_in.weight", (4, 4, 3, 3), "diffusers before 0.36"),
        ("unet/time_embedding.linear_1.weight", (4, 4), "diffusers before 0.36"),
        ("vae/decoder.conv_in.weight", (4, 4, 3, 3), "the vae"),
    ],
)
def test_what_no_loader_applies_is_not_exportable(name: str, shape: tuple[int, ...], reason: str) -> None:
    assert reason in str(unexportable(name, shape, SD1))


@pytest.mark.parametrize(
    "name", [FC2.format(0), Q_PROJ, f"{BLOCK}.attn2.to_k.weight", "unet/down_blocks.0.resnets.0.conv1.weight"]
)
def test_linear_and_convolution_weights_are_exportable(name: str) -> None:
    assert unexportable(name, (3, 3), SD1) is None


def test_xl_names_its_two_text_encoders_apart() -> None:
    names = [f"{component}/text_model.{TEXT_FC2}" for component in ("text_encoder", "text_encoder_2")]
    keys = [module_key(name, FAMILIES["stable-diffusion-xl-v1-base"]) for name in names]
    assert keys == [f"lora_te{n}_text_model_encoder_layers_0_mlp_fc2" for n in (1, 2)]
