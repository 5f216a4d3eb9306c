"""A patch as adapters for PEFT, a folder for each component.

``PeftModel.from_pretrained(component, folder)`` loads one. A linear layer or convolution of which only the
weight changes becomes a LoRA of its changed rows or columns; any other layer, and one that is smaller so, is
stored whole (PEFT's ``modules_to_save``). Both give the patched values once merged: nothing is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any, Final

from surgery.checkpoint.atomic import atomic_folder, make_folder, write_bytes
from surgery.checkpoint.outputs import refuse_foreign_files
from surgery.checkpoint.serialise import Lazy, Written, copied, safetensors_chunks
from surgery.checkpoint.writer import refuse_overlap
from surgery.errors import PatchError
from surgery.export.job import Job, components_of, module_of
from surgery.export.report import ExportReport
from surgery.names import split
from surgery.patch.factors import Factors, select
from surgery.patch.kohya import adapter_metadata

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_FLAT: Final = (5, 6)  # the transformers that took `text_model.` out of CLIPTextModel
_NO_LAYERS: Final = "dummy-target-modules"  # PEFT's word for an adapter that only stores layers whole
_CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "text_encoder": ("CLIPTextModel", "transformers"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "transformers"),
    "unet": ("UNet2DConditionModel", "diffusers"),
    "vae": ("AutoencoderKL", "diffusers"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    """What one component's folder holds: ranks of the LoRAs, layers stored whole, and all tensors."""

    ranks: Mapping[str, int]
    whole: tuple[str, ...]
    tensors: Mapping[str, Written]


def export_peft(job: Job) -> ExportReport:
    """Write an adapter for each touched component.

    Raises:
        PatchError: when it is not known whose names the text encoder's layers should have, or a tensor does
            not come out as the patch records.
        SurgeryError: when ``out`` exists or holds something else, or the disk refuses.
    """
    refuse_overlap(job.checkpoint.path, job.out)
    refuse_foreign_files(
        job.out, rf"(?:text_encoder(?:_2)?|unet|vae)/(?:{CONFIG}|{WEIGHTS})", "an older export"
    )
    components = components_of(job.patch.changes)
    flat = _is_flat(job.knobs.transformers) if "text_encoder" in components else False
    adapters = {component: _adapter(job, component, flat) for component in components}
    errors = dict.fromkeys(job.patch.changes, 0.0)
    with atomic_folder(job.out, overwrite=job.overwrite) as temporary:
        for component, adapter in adapters.items():
            place = temporary / component
            make_folder(place)
            text = json.dumps(_config(component, adapter, flat), indent=2) + "\n"
            write_bytes(place / CONFIG, [text.encode()])
            metadata = adapter_metadata(job.family, job.title, adapter.tensors) | job.record(errors, {})
            write_bytes(place / WEIGHTS, safetensors_chunks(adapter.tensors, metadata))
    layers = sum(len(adapter.ranks) + len(adapter.whole) for adapter in adapters.values())
    return job.report(errors, {}, layers)


def _is_flat(named: str | None) -> bool:
    """Whether the text encoder's layers are named without ``text_model.``.

    Raises:
        PatchError: when no version is named and none is installed, or what is named is none.
    """
    try:
        found = version("transformers") if named is None else named
        major, minor = (int(part) for part in found.split(".")[:2])
    except (PackageNotFoundError, ValueError) as error:
        what = "transformers is not installed" if named is None else f"{named!r} is no version"
        raise PatchError(
            f"{what}; the names of a text encoder's layers depend on it. Name the version that the adapter "
            "is for (--transformers 5.23, or 4.57)."
        ) from error
    return (major, minor) >= _FLAT


def _adapter(job: Job, component: str, flat: bool) -> _Adapter:
    """The adapter of one component, held against the patched weights."""
    modules: dict[str, list[str]] = {}
    for name in job.patch.changes:
        if split(name)[0] == component:
            modules.setdefault(module_of(name), []).append(name)
    ranks: dict[str, int] = {}
    whole: list[str] = []
    tensors: dict[str, Written] = {}
    for module, names in modules.items():
        path = split(module)[1]
        short = path.removeprefix("text_model.") if flat and component == "text_encoder" else path
        factors = _factors(job, names)
        if factors is None:
            whole.append(short)
            tensors |= {f"base_model.model.{short}.{key}": part for key, part in _stored(job, module).items()}
            continue
        ranks[short] = factors.up.shape[1]
        shape = job.patch.changes[names[0]].shape
        ones = (1,) * (len(shape) - 2)
        tensors[f"base_model.model.{short}.lora_A.weight"] = factors.down.reshape(-1, *shape[1:])
        tensors[f"base_model.model.{short}.lora_B.weight"] = factors.up.reshape(shape[0], -1, *ones)
    return _Adapter(ranks=ranks, whole=tuple(whole), tensors=tensors)


def _factors(job: Job, names: list[str]) -> Factors | None:
    """Selector factors of a layer's change; None where the layer must be stored whole, or is smaller so."""
    name, shape = names[0], job.patch.changes[names[0]].shape
    if len(names) > 1 or not name.endswith(".weight") or len(shape) not in (2, 4) or "embedding." in name:
        return None
    change, missed = job.patch.added(name, job.weight(name))
    factors = select(change.flatten(start_dim=1))
    rank = factors.up.shape[1]
    if missed or not rank or rank * (shape[0] + prod(shape[1:])) >= prod(shape):
        return None
    product = (factors.up.double() @ factors.down.double()).reshape(shape)
    return None if job.error_of(name, product) else factors


def _stored(job: Job, module: str) -> dict[str, Written]:
    """Weight and bias of a layer as the patch leaves them."""
    tensors: dict[str, Written] = {}
    for key in ("weight", "bias"):
        name = f"{module}.{key}"
        if name in job.patch.changes:
            job.published(name)  # refuses what does not come out as recorded
            tensors[key] = Lazy(
                dtype=job.checkpoint.entry(name).dtype,
                shape=job.patch.changes[name].shape,
                make=partial(job.published, name),
            )
        elif name in job.checkpoint.tensors:
            tensors[key] = copied(job.checkpoint.entry(name))
    return tensors


def _config(component: str, adapter: _Adapter, flat: bool) -> dict[str, Any]:
    """PEFT's configuration, with alpha = rank for every layer: the product of the factors as it is."""
    kind, library = _CLASSES[component]
    origin: dict[str, str] = {"base_model_class": kind, "parent_library": library}
    if component == "text_encoder":
        origin["names"] = "of transformers from 5.6 on" if flat else "of transformers before 5.6"
    return {
        "peft_type": "LORA",
        "auto_mapping": origin,
        "inference_mode": True,
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(adapter.ranks) or _NO_LAYERS,
        "rank_pattern": dict(adapter.ranks),
        "alpha_pattern": dict(adapter.ranks),
        "modules_to_save": list(adapter.whole) or None,
    }
