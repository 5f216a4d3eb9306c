"""How the models of the published families are built, for single files that do not say it themselves.

Source: the configurations that ``runwayml/stable-diffusion-v1-5``, ``stabilityai/stable-diffusion-2-1`` (and
``-base``) and ``stabilityai/stable-diffusion-xl-base-1.0`` are published with; only what differs from the
libraries' defaults, or decides how a tensor is used, is written out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Shape = tuple[int, ...]

_WIDTH: Final = "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
_CONV_IN: Final = "unet/conv_in.weight"
_INPUTS: Final = ((4,), (9,))  # channels: latents, or with a masked picture and its mask beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A published family.

    Attributes:
        name: ModelSpec's word for it.
        pictures: Side of the pictures it was trained on, in pixels.
        prediction: What the U-Net predicts.
        inputs: Channels that the U-Net reads; 9 for inpainting.
    """

    name: str
    pictures: int
    prediction: Literal["epsilon", "v_prediction"]
    inputs: int


def family_of(architecture: str, shapes: Mapping[str, Shape], velocity: bool) -> Family | None:
    """The family of a checkpoint with these shapes by canonical name; None when it has other widths.

    Args:
        architecture: ModelSpec's word, told from the key set.
        shapes: Of all weights.
        velocity: For SD 2.x, whether it predicts the velocity; keys and shapes do not tell.
    """
    widths = {"stable-diffusion-v1": 768, "stable-diffusion-v2": 1024, "stable-diffusion-xl-v1-base": 2048}
    width, conv_in = shapes.get(_WIDTH), shapes.get(_CONV_IN)
    if width is None or conv_in is None or width[1:] != (widths.get(architecture),):
        return None
    if conv_in[:1] != (320,) or conv_in[1:2] not in _INPUTS:
        return None
    predicts_velocity = velocity and architecture == "stable-diffusion-v2"
    pictures = {"stable-diffusion-v1": 512, "stable-diffusion-xl-v1-base": 1024}.get(architecture)
    return Family(
        name=architecture,
        pictures=pictures or (768 if predicts_velocity else 512),
        prediction="v_prediction" if predicts_velocity else "epsilon",
        inputs=conv_in[1],
    )


def family_files(family: Family, tokenizer: Mapping[str, str]) -> dict[str, str]:
    """The small files of a pipeline of that family, texts by path; ``tokenizer`` holds CLIP's vocabulary."""
    xl = family.name == "stable-diffusion-xl-v1-base"
    tables: dict[str, Any] = {
        "model_index.json": _index(family, xl),
        "scheduler/scheduler_config.json": _scheduler(family, xl),
        "unet/config.json": _unet(family),
        "vae/config.json": _vae(family, xl),
        "text_encoder/config.json": _text(family.name),
    }
    if xl:
        tables["text_encoder_2/config.json"] = _text("second")
    files = {path: json.dumps(table, indent=2) + "\n" for path, table in tables.items()}
    end = "<|endoftext|>"
    pads = {"tokenizer": end if family.name != "stable-diffusion-v2" else "!"} | (
        {"tokenizer_2": "!"} if xl else {}
    )
    for folder, pad in pads.items():
        files |= {f"{folder}/{name}": text for name, text in tokenizer.items()}
        specials = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": pad}
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            **specials,
        }
        files[f"{folder}/tokenizer_config.json"] = json.dumps(settings, indent=2) + "\n"
        files[f"{folder}/special_tokens_map.json"] = json.dumps(specials, indent=2) + "\n"
    return files


def _index(family: Family, xl: bool) -> dict[str, Any]:
    kind = "StableDiffusionXL" if xl else "StableDiffusion"
    inpaints = family.inputs == 9
    index: dict[str, Any] = {
        "_class_name": f"{kind}{'Inpaint' if inpaints else ''}Pipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", _scheduler(family, xl)["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if xl:
        return index | {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
            "image_encoder": [None, None],
            "feature_extractor": [None, None],
        }
    return index | {
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }


def _scheduler(family: Family, xl: bool) -> dict[str, Any]:
    schedule = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": family.prediction,
        "steps_offset": 1,
    }
    if xl:
        return {"_class_name": "EulerDiscreteScheduler", **schedule, "timestep_spacing": "leading"}
    if family.prediction == "v_prediction":
        return {"_class_name": "DDIMScheduler", **schedule, "clip_sample": False, "set_alpha_to_one": False}
    return {
        "_class_name": "PNDMScheduler",
        **schedule,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
    }


def _unet(family: Family) -> dict[str, Any]:
    common = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": family.pictures // 8,
        "in_channels": family.inputs,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "norm_eps": 1e-05,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "center_input_sample": False,
    }
    attends, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    if family.name == "stable-diffusion-xl-v1-base":
        return common | {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": [plain, attends, attends],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    widths = {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [attends, attends, attends, plain],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    }
    if family.name == "stable-diffusion-v1":
        return common | widths | {"cross_attention_dim": 768, "attention_head_dim": 8}
    return (
        common
        | widths
        | {
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
            # half precision overflows in the 2.1 model that predicts the velocity
            "upcast_attention": family.prediction == "v_prediction",
        }
    )


def _vae(family: Family, xl: bool) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": family.pictures,
        "scaling_factor": 0.13025 if xl else 0.18215,
        **({"force_upcast": True} if xl else {}),
    }


def _text(which: str) -> dict[str, Any]:
    width, blocks, heads, activation, projection = {
        "stable-diffusion-v1": (768, 12, 12, "quick_gelu", 768),
        "stable-diffusion-xl-v1-base": (768, 12, 12, "quick_gelu", 768),
        "stable-diffusion-v2": (1024, 23, 16, "gelu", 512),
        "second": (1280, 32, 20, "gelu", 1280),
    }[which]
    return {
        "architectures": ["CLIPTextModelWithProjection" if which == "second" else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": projection,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "layer_norm_eps": 1e-05,
        "bos_token_id": 0,
        # transformers takes the highest token for the end where this is 2, as the published files have it
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
