"""The keys of single files, held against diffusers' own reading of them on whole models of all families."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from surgery.checkpoint.ldm import averaged_key, facts_of_names, modules, places_of_keys, places_of_names
from surgery.errors import CheckpointError
from surgery.names import canonical, split

# sizes of the published models; meta tensors take no memory
UNETS: Mapping[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "attention_head_dim": (5, 10, 20, 20),
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXTS: Mapping[str, dict[str, tuple[int, int, bool]]] = {  # width, blocks, with a projection
    "sd1": {"text_encoder": (768, 12, False)},
    "sd2": {"text_encoder": (1024, 23, False)},
    "sdxl": {"text_encoder": (768, 12, False), "text_encoder_2": (1280, 32, True)},
}
TEXT_PREFIX = {
    ("sd1", "text_encoder"): "cond_stage_model.transformer.",
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
}


def models(family: str) -> dict[str, torch.nn.Module]:
    with torch.device("meta"):
        made: dict[str, torch.nn.Module] = {
            "unet": UNet2DConditionModel(**UNETS[family]),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
        }
        for component, (width, blocks, projects) in TEXTS[family].items():
            config = CLIPTextConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks, projection_dim=width
            )
            made[component] = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
    return made


@pytest.fixture(scope="module", params=list(UNETS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tensors(family: str) -> dict[str, Tensor]:
    """All weights of a family by canonical name, without storage."""
    return {
        canonical(component, path): tensor
        for component, model in models(family).items()
        for path, tensor in model.state_dict().items()
        if not path.endswith("position_ids")
    }


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def as_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The single file: what `convert` writes, without a disk."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, place in places_of_names(shapes(tensors)).items():
        tensor = tensors[name].T if place.transposed else tensors[name]
        tensor = tensor[..., None, None] if place.pixel else tensor
        parts.setdefault(place.key, {})[place.part] = tensor
    return {key: torch.cat([found[n] for n in range(len(found))]) for key, found in parts.items()}


def test_every_weight_has_a_place_and_comes_back_from_it(tensors: dict[str, Tensor]) -> None:
    there = places_of_names(shapes(tensors))
    assert there.keys() == tensors.keys()
    back = places_of_keys(shapes(as_file(tensors)))
    assert back == there


def test_the_table_is_a_bijection(tensors: dict[str, Tensor]) -> None:
    table = modules(facts_of_names(shapes(tensors)))
    assert len(set(table.values())) == len(table)


def test_diffusers_reads_the_same_tensors_out_of_the_file(family: str, tensors: dict[str, Tensor]) -> None:
    file = as_file(tensors)
    config = {"layers_per_block": 2, **UNETS[family], "class_embed_type": None}
    config.setdefault("addition_embed_type", None)
    config.setdefault("down_block_types", ("",) * 4)
    config.setdefault("up_block_types", ("",) * 4)
    read = {
        "unet": convert_ldm_unet_checkpoint(dict(file), config),
        "vae": convert_ldm_vae_checkpoint(
            dict(file), {"down_block_types": ("",) * 4, "up_block_types": ("",) * 4}
        ),
    }
    for component in TEXTS[family]:
        prefix = TEXT_PREFIX[family, component]
        if prefix.endswith("transformer."):
            read[component] = convert_ldm_clip_checkpoint(dict(file))
        else:
            model = SimpleNamespace(config=SimpleNamespace(hidden_size=TEXTS[family][component][0]))
            read[component] = convert_open_clip_checkpoint(model, dict(file), prefix=prefix)
    found = {canonical(c, path): tuple(t.shape) for c, state in read.items() for path, t in state.items()}
    assert found == shapes(tensors)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (
            "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        (
            "unet/down_blocks.0.resnets.0.conv1.weight",
            "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        ),
        ("unet/up_blocks.0.upsamplers.0.conv.bias", "model.diffusion_model.output_blocks.2.1.conv.bias"),
        ("unet/up_blocks.1.upsamplers.0.conv.bias", "model.diffusion_model.output_blocks.5.2.conv.bias"),
        ("vae/decoder.up_blocks.0.resnets.2.conv2.bias", "first_stage_model.decoder.up.3.block.2.conv2.bias"),
        (
            "text_encoder/text_model.encoder.layers.3.mlp.fc2.weight",
            "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc2.weight",
        ),
    ],
)
def test_keys_of_sd1_are_those_in_the_wild(name: str, key: str) -> None:
    tensors = {canonical(c, path): t for c, m in models("sd1").items() for path, t in m.state_dict().items()}
    assert places_of_names(shapes(tensors))[name].key == key


def test_the_block_and_the_projection_that_sd2_does_not_use_are_no_weights() -> None:
    prefix = "cond_stage_model.model."
    keys: dict[str, tuple[int, ...]] = {
        f"{prefix}transformer.resblocks.{n}.ln_1.weight": (1024,) for n in range(24)
    }
    keys |= {f"{prefix}text_projection": (1024, 1024), f"{prefix}logit_scale": ()}
    names = places_of_keys(keys)
    assert len(names) == 23
    assert {split(name)[0] for name in names} == {"text_encoder"}


def test_averaged_keys_of_a_whole_unet_are_distinct(tensors: dict[str, Tensor]) -> None:
    places = places_of_names(shapes(tensors))
    keys = [place.key for name, place in places.items() if name.startswith("unet/")]
    assert len({averaged_key(key) for key in keys}) == len(keys)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    assert averaged_key(first) == "model_ema.diffusion_modelinput_blocks00weight"  # as in v1-5-pruned


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.999999999999.0.weight",
        "first_stage_model.encoder.down.101.block.0.conv1.weight",
        "cond_stage_model.model.transformer.resblocks.12345678901234567890.ln_1.weight",
    ],
)
def test_a_number_of_blocks_that_no_model_has_is_refused_before_a_table_is_made(key: str) -> None:
    with pytest.raises(CheckpointError, match="no Stable Diffusion has more than 100 blocks"):
        places_of_keys({key: (1,)})
