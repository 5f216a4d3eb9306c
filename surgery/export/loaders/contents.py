"""What a LoRA-like file holds: its keys as changes of canonical tensors, whatever they are named."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, Literal

from torch import Tensor

from surgery.checkpoint.header import TensorEntry, open_header
from surgery.checkpoint.reader import read_tensor
from surgery.errors import PatchError, brief, raise_all
from surgery.export.loaders.names import Layer, Naming, read_name

Target = Literal["weight", "bias"]

_PARTS: Final[Mapping[str, str]] = {
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_down.weight": "down",
    ".lora.up.weight": "up",
    ".lora.down.weight": "down",
    "_lora.up.weight": "up",
    "_lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.bias": "lora_bias",
    ".lora_mid.weight": "other",
    ".alpha": "alpha",
    ".dora_scale": "dora",
    ".bias.set_weight": "bias_set",
    ".bias.diff": "bias_diff",
    ".diff_b": "diff_b",
    ".diff": "diff",
    ".set_weight": "set",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
}
"""How keys end, longest first where one ends like another, and what their tensor is to its layer."""

_OTHER: Final = re.compile(r"(.+)\.(?:hada_|lokr_|oft_|ia3|glora|on_input|a1|a2|b1|b2|rescale)")
_BIAS_FORMS: Final = {"diff_b", "b_norm", "lora_bias", "bias_set", "bias_diff"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """The tensors of one layer in the file.

    Attributes:
        key: What their keys begin with.
        layer: The layer of the model that they mean; None where no model of ours has one of that name.
        parts: Per part (``up``, ``alpha``, …), its key in the file.
    """

    key: str
    naming: Naming
    prefix: str
    layer: Layer | None
    parts: Mapping[str, str]

    @property
    def forms(self) -> tuple[str, ...]:
        """The ways in which this layer is changed; more than one loses something in most loaders."""
        parts = self.parts.keys()
        forms = []
        if "dora" in parts:
            forms.append("dora")
        elif "other" in parts:
            forms.append("other")
        elif {"up", "down"} <= parts:
            forms.append("lora")
        elif parts & {"up", "down"}:
            forms.append("half-lora")
        forms += [part for part in ("diff", "w_norm", "set", *sorted(_BIAS_FORMS)) if part in parts]
        return tuple(forms) or ("nothing",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One way in which a file changes one tensor.

    Attributes:
        tensor: Canonical name; the file's own where it means no tensor that is known.
        form: ``lora``, ``diff``, ``diff_b``, ``set``, …
    """

    module: Module
    form: str
    tensor: str

    @property
    def target(self) -> Target:
        """Which tensor of the layer it changes."""
        return "bias" if self.form in _BIAS_FORMS else "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A LoRA-like file, its tensors unread.

    Attributes:
        architecture: ModelSpec's word for the model that it is for.
        changes: Everything that it changes, in the order of its bytes.
        alphas: Of the modules that have one, by their keys.
        shapes: Of the model's weights by canonical name; None where only the file is known.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    modules: tuple[Module, ...]
    changes: tuple[Change, ...]
    alphas: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]] | None

    def read(self, module: Module, part: str) -> Tensor:
        """The tensor of one part of a module."""
        return read_tensor(self.entries[module.parts[part]])

    def shape(self, module: Module, part: str) -> tuple[int, ...]:
        """The shape of one part of a module."""
        return self.entries[module.parts[part]].shape

    def is_nothing(self, change: Change) -> bool:
        """Whether a change adds zeros, as modules do that stand in a file for the sake of others."""
        module, form = change.module, change.form
        if form == "nothing":
            return True
        if form == "lora":
            return not all(self.read(module, part).any() for part in ("up", "down"))
        if form in module.parts and form not in ("set", "bias_set"):
            return not self.read(module, form).any()
        return False


def read_contents(
    path: Path, architecture: str | None, shapes: Mapping[str, tuple[int, ...]] | None
) -> Contents:
    """The contents of a file, from its header.

    Args:
        path: The file.
        architecture: Of the model at hand; None to tell it from the file.
        shapes: Of the model's weights, where it is at hand.

    Raises:
        PatchError: when the file is damaged, holds nothing like a LoRA, or does not tell for which model.
    """
    if path.is_dir():
        raise PatchError(
            f"{path} is a folder; one LoRA-like file was expected. Folders of adapters are for PEFT alone."
        )
    header = open_header(path, PatchError)
    entries = {entry.key: entry for entry in header.entries}
    parts = _grouped(entries)
    if not any(found.keys() - {"unknown", "alpha"} for found in parts.values()):
        if "sdpatch.manifest" in header.metadata:
            raise PatchError(_no_loader_s(path, header.metadata["sdpatch.manifest"]))
        shown = ", ".join(brief(key) for key in list(entries)[:3]) or "none"
        raise PatchError(
            f"{path} holds nothing that a loader of LoRA files looks for (its keys: {shown}); keys such as "
            "'lora_unet_….lora_up.weight', '….diff' or '….set_weight' were expected. A patch is exported "
            "first (surgery export), a checkpoint is loaded as it is."
        )
    family = architecture or _architecture(path, header.metadata, entries)
    modules = []
    for key, found in parts.items():
        naming, prefix, layer = read_name(key, family, shapes)
        if naming == "diffusers" and not any("lora_A" in name or "lora_B" in name for name in found.values()):
            naming = "diffusers-old"
        modules.append(Module(key=key, naming=naming, prefix=prefix, layer=layer, parts=found))
    raise_all(PatchError, list(_faults(path, modules, entries)))
    return Contents(
        path=path,
        architecture=family,
        metadata=header.metadata,
        entries=entries,
        modules=tuple(modules),
        changes=tuple(_changes(modules)),
        alphas={m.key: float(read_tensor(entries[m.parts["alpha"]])) for m in modules if "alpha" in m.parts},
        shapes=shapes,
    )


def _no_loader_s(path: Path, manifest: str) -> str:
    """Why no loader reads a patch that is not laid out as a LoRA, and what it can be exported to."""
    masks = '"scale_' in manifest
    what = "masks: shares that weights are multiplied with" if masks else "changes that are no factors"
    told = (
        f"{path} is a patch of {what}; no loader of LoRA files knows them. Export it: every program loads a "
        "'checkpoint' or a 'variant'; beside its checkpoint, 'comfy' sets the weights in ComfyUI, 'lycoris' "
        "adds their difference where such files are read, and 'universal-lora' is factors for the others."
    )
    if masks:
        told += " Load a difference at strength 1: at 2, masked weights come out with the opposite sign."
    return told


def _changes(modules: Iterable[Module]) -> Iterator[Change]:
    for module in modules:
        for form in module.forms:
            target = "bias" if form in _BIAS_FORMS else "weight"
            tensor = f"{module.key}.{form}" if module.layer is None else f"{module.layer.name}.{target}"
            yield Change(module=module, form=form, tensor=tensor)


def _faults(path: Path, modules: Iterable[Module], entries: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Tensors that are not what their keys say, in whatever loader."""
    for module in modules:
        for part, key in module.parts.items():
            entry = entries[key]
            if part == "alpha" and prod(entry.shape) != 1:
                yield f"{path}: {key!r} has the shape {entry.shape}; one number was expected."
            elif part in ("up", "down") and (len(entry.shape) not in (2, 4) or 0 in entry.shape):
                yield f"{path}: {key!r} has the shape {entry.shape}; a matrix or kernels were expected."
            elif part not in ("alpha", "unknown") and not entry.dtype.is_floating_point:
                yield f"{path}: {key!r} is of type {entry.dtype}; floating-point numbers were expected."


def _grouped(keys: Mapping[str, TensorEntry]) -> dict[str, dict[str, str]]:
    """Per module, its parts and their keys."""
    modules: dict[str, dict[str, str]] = {}
    for key in keys:
        stem, part = _split(key)
        modules.setdefault(stem, {})[part] = key
    return modules


def _split(key: str) -> tuple[str, str]:
    for ending, part in _PARTS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    other = _OTHER.match(key)
    if other:
        return other[1], "other"
    return key, "unknown"


_VERSIONS: Final = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2",
    "sd_v2_v": "stable-diffusion-v2",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
}
_WIDTHS: Final = {
    768: "stable-diffusion-v1",
    1024: "stable-diffusion-v2",
    2048: "stable-diffusion-xl-v1-base",
}


def _architecture(path: Path, metadata: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> str:
    """For which family a file is: by its metadata, its second text encoder, or the width of its attention."""
    stated = _VERSIONS.get(metadata.get("ss_base_model_version", ""))
    if stated:
        return stated
    if any(key.startswith(("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.")) for key in entries):
        return "stable-diffusion-xl-v1-base"
    for key, entry in entries.items():
        inputs = key.endswith((".lora_down.weight", ".lora_A.weight", ".diff", ".set_weight"))
        if "attn2" in key and re.search(r"to_[kv]\b", key.replace("_lora", ".")) and inputs:
            found = _WIDTHS.get(entry.shape[1]) if len(entry.shape) > 1 else None
            if found:
                return found
    raise PatchError(
        f"{path} does not tell for which family of models it is; metadata of kohya or a cross-attention "
        "layer was expected. Name its base (--base)."
    )
