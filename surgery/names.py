"""Names that every room agrees on: tensors, components and the files of a result.

A canonical tensor name is ``<component>/<diffusers path>``, for example
``text_encoder/text_model.encoder.layers.3.mlp.fc2.weight``. It does not depend on the layout or on the
library version that wrote the file.

Axis names of array shapes (jaxtyping), used everywhere with one meaning:

======== ==========================================================
edits    edited concepts of one recipe
prompts  templates of one concept filled with its phrase
tokens   positions of the text encoder (77 for CLIP)
d_in     inputs of a linear map; ``d_out`` its outputs
width    width of the text encoder
rank     columns of a low-rank factor
======== ==========================================================
"""

from typing import Final

TEXT_ENCODERS: Final = ("text_encoder", "text_encoder_2")
COMPONENTS: Final = (*TEXT_ENCODERS, "unet", "vae")

PATCH_FILE: Final = "patch.safetensors"
LORA_FILE: Final = "lora.safetensors"
CHECKPOINT_FOLDER: Final = "checkpoint"
SHEET_FILE: Final = "sheet.png"
RUN_FILE: Final = "run.json"


def canonical(component: str, path: str) -> str:
    """The canonical name of tensor ``path`` inside ``component``.

    Text-encoder paths carry ``text_model.`` whether or not the file at hand spells it out
    (transformers 5.6 and later dropped it).
    """
    if component.startswith("text_encoder") and path.startswith(
        ("encoder.", "embeddings.", "final_layer_norm.")
    ):
        path = f"text_model.{path}"
    return f"{component}/{path}"


def split(name: str) -> tuple[str, str]:
    """Component and path of a canonical tensor name.

    Raises:
        ValueError: when ``name`` does not begin with a known component and a slash.
    """
    component, slash, path = name.partition("/")
    if component not in COMPONENTS or not slash or not path:
        raise ValueError(f"{name!r} is no canonical tensor name; expected <component>/<path>")
    return component, path
