"""A patch as a LyCORIS file of full differences, for what no LoRA carries: biases and the U-Net's norms.

ComfyUI, A1111, Forge, InvokeAI and stable-diffusion.cpp add them; diffusers refuses such files and kohya's
merge leaves them out. Here goes what ComfyUI, A1111 and InvokeAI all apply under one name.
"""

import re
from collections.abc import Iterable
from functools import partial
from math import prod
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.serialise import Lazy, Written, safetensors_chunks
from surgery.export.job import Job, module_of, modules_in
from surgery.export.report import ExportReport
from surgery.names import split
from surgery.patch.kohya import FAMILIES, adapter_metadata, companions, module_key

OPEN_CLIP: Final = {"stable-diffusion-v2": "text_encoder", "stable-diffusion-xl-v1-base": "text_encoder_2"}
"""open_clip's text encoder by architecture; some loaders have its query, key and value in one."""

_QKV: Final = re.compile(r".*\.self_attn\.[qkv]_proj\.bias")
_NETWORK: Final = {
    "ss_network_module": "lycoris.kohya",
    "ss_network_dim": "1",  # of the modules of zeros, the only ones that have one
    "ss_network_alpha": "1.0",
    "ss_network_args": '{"algo":"full"}',
}


def export_lycoris(job: Job) -> ExportReport:
    """Write half-precision differences: ``.diff`` of weights, and ``.diff_b`` of biases beside a ``.diff``.

    Raises:
        PatchError: listing every tensor that one of the loaders would drop, or whose values a half-precision
            difference does not reach.
        SurgeryError: when the file exists, or the disk refuses.
    """
    family = job.family
    left_out = {
        name: reason
        for name, change in job.patch.changes.items()
        if (reason := unreached(name, change.shape, job.patch.architecture))
    }
    left_out |= job.unreachable(job.patch.changes.keys() - left_out.keys())
    names = job.kept(left_out)
    errors = {name: job.error_of(name, job.half_change(name)) for name in names}
    tensors = _differences(job, names) | _zero_modules(job, names)
    metadata = adapter_metadata(family, job.title, tensors) | _NETWORK | job.record(errors, left_out)
    with atomic_file(job.out, overwrite=job.overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata))
    return job.report(errors, left_out, modules_in(tensors))


def unreached(name: str, shape: tuple[int, ...], architecture: str) -> str | None:
    """Which loader would drop a difference of this tensor, or None where they all apply it."""
    component, path = split(name)
    family = FAMILIES[architecture]
    text = component.startswith("text_encoder")
    if component not in family.prefixes:
        return f"no loader of such files reaches the {component}"
    if "embeddings." in path:
        return "A1111 never applies a change of embeddings and Forge drops it, both without a word"
    if path.startswith("text_projection"):
        return "A1111 has no such layer"
    if text and len(shape) == 1 and "norm" in path:
        return "ComfyUI and Forge drop changes of a text encoder's norms"
    if path.startswith("conv_norm_out."):
        return "A1111 drops it under this name"
    if path.startswith("add_embedding."):
        return "A1111 knows no such layer by this name"
    if family is FAMILIES["stable-diffusion-xl-v1-base"] and path.startswith("up_blocks.0.upsamplers."):
        return "A1111 drops it without a word"
    if _QKV.fullmatch(path) and OPEN_CLIP.get(architecture) == component:
        return "A1111 keeps these biases in one tensor with others and drops the change"
    return None


def _differences(job: Job, names: Iterable[str]) -> dict[str, Written]:
    """The differences; a layer of which only the bias changes gets zeros for its weight.

    A1111 and InvokeAI refuse a whole file for one bias without a weight.
    """
    tensors: dict[str, Written] = {}
    for name in names:
        weight = f"{module_of(name)}.weight"
        key = module_key(weight, job.family)
        make = partial(job.half_change, name)
        suffix = "diff" if name == weight else "diff_b"
        tensors[f"{key}.{suffix}"] = Lazy(dtype=torch.float16, shape=job.patch.changes[name].shape, make=make)
        tensors.setdefault(f"{key}.diff", _nothing(job.checkpoint.entry(weight).shape))
    return tensors


def _zero_modules(job: Job, names: Iterable[str]) -> dict[str, Written]:
    """Layers that must stand in the file untouched: LoRAs of rank one, the smallest modules there are.

    Query, key and value of open_clip are one tensor to some loaders, and must all be changed in one way.
    """
    tensors: dict[str, Written] = {}
    weights = {f"{module_of(name)}.weight" for name in names}
    for name in sorted(companions(weights, job.family)):
        shape, key = job.checkpoint.entry(name).shape, module_key(name, job.family)
        if split(name)[0] == OPEN_CLIP.get(job.patch.architecture):
            tensors[f"{key}.diff"] = _nothing(shape)
            continue
        tensors[f"{key}.lora_up.weight"] = _zeros((shape[0], 1, *(1,) * (len(shape) - 2)))
        tensors[f"{key}.lora_down.weight"] = _zeros((1, *shape[1:]))
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    return tensors


def _nothing(shape: tuple[int, ...]) -> Lazy:
    return Lazy(dtype=torch.float16, shape=shape, make=partial(_zeros, shape))


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(prod(shape), dtype=torch.float16).reshape(shape)
