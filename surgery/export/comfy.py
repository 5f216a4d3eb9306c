"""A patch as a file for ComfyUI alone that sets weights instead of adding to them.

Values are copied, so embeddings, norms and changes that no half-precision difference reaches come out to the
bit, and the strength that a user chooses does nothing to them (at two strengths of zero the node does not
load the file). Names are ComfyUI's own: those of the single file for the U-Net, those of transformers for the
text encoders, where query, key and value are three tensors whatever the checkpoint's file has.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.ldm import UNET_PREFIX, Place, places_of_names
from surgery.checkpoint.serialise import Lazy, Written, safetensors_chunks
from surgery.export.job import Job, module_of
from surgery.export.report import ExportReport
from surgery.names import split
from surgery.patch.kohya import adapter_metadata

TEXT_ENCODERS: Final[Mapping[str, Mapping[str, str]]] = {
    "stable-diffusion-v1": {"text_encoder": "clip_l"},
    "stable-diffusion-v2": {"text_encoder": "clip_h"},
    "stable-diffusion-xl-v1-base": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
}
"""ComfyUI's words for the text encoders, by architecture and component."""

_IMPLEMENTATION: Final = "https://github.com/comfyanonymous/ComfyUI"


def export_comfy(job: Job) -> ExportReport:
    """Write the new weights whole, each as ``<ComfyUI's name>.set_weight``.

    Raises:
        PatchError: listing every tensor that ComfyUI's LoRA loader cannot reach; or when a tensor does not
            come out as the patch records.
        SurgeryError: when the file exists, or the disk refuses.
    """
    family, architecture = job.family, job.patch.architecture
    places = places_of_names(job.checkpoint.shapes)
    keys: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in job.patch.changes:
        try:
            keys[name] = raw_key(name, architecture, places)
        except ValueError as error:
            left_out[name] = str(error)
    names = job.kept(left_out)
    for name in names:
        job.published(name)  # which refuses what does not come out as recorded
    errors = dict.fromkeys(names, 0.0)
    tensors: dict[str, Written] = {
        f"{keys[name]}.set_weight": Lazy(
            dtype=job.checkpoint.entry(name).dtype,
            shape=job.patch.changes[name].shape,
            make=partial(job.published, name),
        )
        for name in names
    }
    metadata = adapter_metadata(family, job.title, tensors, _IMPLEMENTATION)
    with atomic_file(job.out, overwrite=job.overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata | job.record(errors, left_out)))
    return job.report(errors, left_out, len({module_of(name) for name in names}))


def raw_key(name: str, architecture: str, places: Mapping[str, Place]) -> str:
    """ComfyUI's own name for a tensor, without the ending ``.weight``.

    Args:
        name: Canonical.
        architecture: ModelSpec's word for the model.
        places: Of the model's tensors in a single file.

    Raises:
        ValueError: with the reason why ComfyUI's LoRA loader cannot set it.
    """
    component, path = split(name)
    if component == "unet" and name in places:
        inner = places[name].key.removeprefix(UNET_PREFIX)
        return f"diffusion_model.{inner.removesuffix('.weight')}"
    encoder = TEXT_ENCODERS[architecture].get(component)
    if encoder is None:
        raise ValueError(f"ComfyUI's LoRA loader does not reach the {component}")
    if not path.endswith(".weight"):
        raise ValueError("ComfyUI's LoRA loader can only add to a text encoder's biases, not set them")
    return f"text_encoders.{encoder}.transformer.{path.removesuffix('.weight')}"
