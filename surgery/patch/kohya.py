"""Kohya's names, the only ones that every loader of LoRA files reads, and what can travel under them.

Each rule prevents a failure that was seen in a loader: a file that is refused, or a layer silently dropped.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from surgery.names import split

PREFIXES: Final[Mapping[str, str]] = {"text_encoder": "lora_te", "unet": "lora_unet"}
"""For SD 1.x; InvokeAI drops ``lora_te1`` there, A1111 and others read both."""

ANCHOR: Final = "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
"""InvokeAI tells the base model from a cross-attention key; without one it cannot install the file."""

_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNREACHED: Final = ("conv_in.", "conv_out.", "time_embedding.")


def module_key(name: str) -> str:
    """Kohya's name of the module that a canonical weight belongs to."""
    component, path = split(name)
    module = path.removesuffix(".weight").replace(".", "_")
    return f"{PREFIXES[component]}_{module}"


def unexportable(name: str, shape: tuple[int, ...]) -> str | None:
    """Why a change of this tensor cannot travel as a LoRA, or None when it can."""
    component, path = split(name)
    if component not in PREFIXES:
        return f"no loader applies a LoRA to the {component}"
    if not path.endswith(".weight") or len(shape) not in (2, 4):
        return "only weights of linear and convolution layers can"
    if "embeddings." in path:
        return "no loader applies it to embeddings"
    if component == "unet" and path.startswith(_UNREACHED):
        return "diffusers before 0.36 refuses it and kohya drops it"
    return None


def companions(names: Iterable[str]) -> set[str]:
    """Untouched weights that must stand in the file with zeros, for the touched ones to be read.

    diffusers drops ``q``, ``k`` and ``v`` of a text encoder without ``out``; A1111 and stable-diffusion.cpp
    want all four.
    """
    needed = {ANCHOR}
    for name in names:
        module, _, last = name.removesuffix(".weight").rpartition(".")
        if name.startswith("text_encoder/") and module.endswith("self_attn") and last in _ATTENTION:
            needed |= {f"{module}.{other}.weight" for other in _ATTENTION}
    return needed - set(names)
