"""Keys of component files and canonical names, as tables.

A canonical name is what diffusers and transformers call the tensor today, with ``text_model.`` spelled out;
files written by older or newer libraries use other keys for the same tensor.
"""

from collections.abc import Mapping
from typing import Final

from surgery.names import canonical

WEIGHT_STEMS: Final[Mapping[str, str]] = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""How the weight file of a component folder begins, before any variant and ``.safetensors``."""

_OLD_VAE_ATTENTION: Final[Mapping[str, str]] = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""Names of the VAE's attention before diffusers 0.18; the original SD 1.x folders still carry them."""


def canonical_name(component: str, key: str) -> str | None:
    """The canonical name of a key in a component's file; None for buffers that are no weights."""
    if key.endswith("embeddings.position_ids"):
        return None
    if component == "vae" and ".attentions." in key:
        path, name, kind = key.rsplit(".", 2)
        key = f"{path}.{_OLD_VAE_ATTENTION.get(name, name)}.{kind}"
    return canonical(component, key)
