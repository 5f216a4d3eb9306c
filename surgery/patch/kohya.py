"""Kohya's names, the only ones that every loader of LoRA files reads, and what can travel under them.

Each rule prevents a failure that was seen in a loader: a file that is refused, or a layer silently dropped.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from surgery.checkpoint.serialise import Written, safetensors_chunks
from surgery.names import split


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How LoRA files name the parts of a family of models.

    Attributes:
        prefixes: Of the module names, by component. InvokeAI drops ``lora_te1`` for SD 1.x and A1111 for 2.x.
        base_version: Kohya's word for the base.
        specification: ModelSpec's word for it.
        anchor: A cross-attention weight; InvokeAI tells the base model from one, and cannot install a file
            without.
    """

    prefixes: Mapping[str, str]
    base_version: str
    specification: str
    anchor: str


_TO_K: Final = "unet/down_blocks.{}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
FAMILIES: Final[Mapping[str, Family]] = {
    "stable-diffusion-v1": Family(
        prefixes={"text_encoder": "lora_te", "unet": "lora_unet"},
        base_version="sd_v1",
        specification="stable-diffusion-v1",
        anchor=_TO_K.format(0),
    ),
    "stable-diffusion-v2": Family(
        prefixes={"text_encoder": "lora_te", "unet": "lora_unet"},
        base_version="sd_v2",
        specification="stable-diffusion-v2-512",
        anchor=_TO_K.format(0),
    ),
    "stable-diffusion-xl-v1-base": Family(
        prefixes={"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "unet": "lora_unet"},
        base_version="sdxl_base_v1-0",
        specification="stable-diffusion-xl-v1-base",
        anchor=_TO_K.format(1),
    ),
}
"""By ModelSpec's word for the architecture, as `Checkpoint.architecture` has it."""

_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNREACHED: Final = ("conv_in.", "conv_out.", "time_embedding.", "add_embedding.")


def module_key(name: str, family: Family) -> str:
    """Kohya's name of the module that a canonical weight belongs to."""
    component, path = split(name)
    module = path.removesuffix(".weight").replace(".", "_")
    return f"{family.prefixes[component]}_{module}"


def unexportable(name: str, shape: tuple[int, ...], family: Family) -> str | None:
    """Why a change of this tensor cannot travel as a LoRA, or None when it can."""
    component, path = split(name)
    if component not in family.prefixes:
        return f"no loader applies a LoRA to the {component}"
    if not path.endswith(".weight") or len(shape) not in (2, 4):
        return "only weights of linear and convolution layers can"
    if "embeddings." in path:
        return "no loader applies it to embeddings"
    if path.startswith("text_projection"):
        return "A1111 has no such layer"
    if component == "unet" and path.startswith(_UNREACHED):
        return "diffusers before 0.36 refuses it and kohya drops it"
    if family is FAMILIES["stable-diffusion-xl-v1-base"] and path.startswith("up_blocks.0.upsamplers."):
        return "A1111 drops it without a word"
    return None


def companions(names: Iterable[str], family: Family) -> set[str]:
    """Untouched weights that must stand in the file with zeros, for the touched ones to be read.

    diffusers drops ``q``, ``k`` and ``v`` of a text encoder without ``out``; A1111 and stable-diffusion.cpp
    want all four.
    """
    needed = {family.anchor}
    for name in names:
        module, _, last = name.removesuffix(".weight").rpartition(".")
        if name.startswith("text_encoder") and module.endswith("self_attn") and last in _ATTENTION:
            needed |= {f"{module}.{other}.weight" for other in _ATTENTION}
    return needed - set(names)


def lora_metadata(
    family: Family, title: str, alpha: int, ranks: Iterable[int], tensors: Mapping[str, Written]
) -> dict[str, str]:
    """What kohya and ModelSpec ask of the header of a LoRA file."""
    different = set(ranks)
    return adapter_metadata(family, title, tensors) | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic" if len(different) > 1 else str(max(different)),
        "ss_network_alpha": str(float(alpha)),
        "ss_network_args": "{}",
    }


def adapter_metadata(
    family: Family, title: str, tensors: Mapping[str, Written], implementation: str = "diffusers"
) -> dict[str, str]:
    """What kohya and ModelSpec ask of the header of any file that changes a model.

    Args:
        family: Of the base.
        title: For people.
        tensors: Of the file.
        implementation: ModelSpec's word for the code whose names the file uses.
    """
    return {
        "format": "pt",
        "ss_base_model_version": family.base_version,
        "ss_v2": str(family is FAMILIES["stable-diffusion-v2"]),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.specification}/lora",
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.hash_sha256": f"0x{_data_digest(tensors)}",
    }


def _data_digest(tensors: Mapping[str, Written]) -> str:
    """The sha256 of a file's bytes behind the header, as ModelSpec wants it."""
    digest = hashlib.sha256()
    chunks = safetensors_chunks(tensors, {})
    next(chunks)  # the header
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
