"""The weights that a loader holds after it applied a change: its scale, its precisions, its roundings."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from surgery.export.loaders.contents import Change, Contents, Module
from surgery.export.loaders.table import Loader


def scale_of(kind: str, module: Module, contents: Contents) -> float:
    """What the product of a LoRA's factors is multiplied with at strength 1."""
    return _SCALES[kind](module, contents)


def held(
    change: Change, weight: Tensor, loader: Loader, contents: Contents, run: torch.dtype
) -> Tensor | None:
    """The weight after the change, in the precision that the model runs in; None where it is not computed.

    Args:
        change: One that the loader applies.
        weight: The base's, as stored.
        loader: Which one.
        contents: The file.
        run: The precision that the model runs in; loaders cast the weight to it first.
    """
    module, start = change.module, weight.to(run)
    if change.form in ("set", "bias_set"):
        return contents.read(module, change.form).to(run).reshape(weight.shape)
    if change.form == "lora":
        precision = run if loader.factors == "run" else torch.float32
        up, down = (contents.read(module, part).to(precision).flatten(1).float() for part in ("up", "down"))
        added = (scale_of(loader.scale, module, contents) * (up @ down)).reshape(weight.shape)
        return _sum(start, added, run if loader.sum == "run" else torch.float32)
    if change.form not in ("diff", "diff_b", "bias_diff", "w_norm", "b_norm"):
        return None
    added = contents.read(module, change.form).reshape(weight.shape)
    single = torch.promote_types(added.dtype, run) if loader.differences == "stored" else torch.float32
    return _sum(start, added, run if loader.differences == "run" else single)


def _sum(weight: Tensor, added: Tensor, precision: torch.dtype) -> Tensor:
    """Weight plus change, both cast to a precision, and the sum in it, in the weight's own type."""
    return (weight.to(precision) + added.to(precision)).to(weight.dtype)


def _plain(module: Module, contents: Contents) -> float:
    """Alpha / rank, and 1 without an alpha."""
    rank = contents.shape(module, "down")[0]
    return contents.alphas[module.key] / rank if module.key in contents.alphas else 1.0


def _kohya(module: Module, contents: Contents) -> float:
    """Alpha / rank, where an alpha of 0 counts as the rank."""
    return _plain(module, contents) or 1.0


def _diffusers(module: Module, contents: Contents, *, older: bool) -> float:
    """What diffusers makes of the alphas of one component: one for all, and exceptions under their names.

    The names of exceptions are those of layers only for some: attention, and text encoders without
    ``text_model.``, keep the alpha that most layers have.
    """
    own = [m for m in contents.modules if _component(m) == _component(module) and "down" in m.parts]
    rank = contents.shape(module, "down")[0]
    alphas = {m.key: contents.alphas[m.key] for m in own if m.key in contents.alphas}
    if module.naming.startswith("diffusers") or not alphas:
        first = contents.shape(own[0], "down")[0]
        return first / rank if older else 1.0
    common = Counter(alphas.values()).most_common()[0][0]
    alpha = alphas.get(module.key, common) if _is_named(module, older=older) else common
    return alpha / rank


def _component(module: Module) -> str:
    return "" if module.layer is None else module.layer.component


def _is_named(module: Module, *, older: bool) -> bool:
    """Whether an alpha of its own reaches this layer."""
    layer = module.layer
    if layer is None or layer.kind in ("attention", "te-attention"):
        return False
    return layer.component != "text_encoder" or older


def _current(module: Module, contents: Contents) -> float:
    return _diffusers(module, contents, older=False)


def _older(module: Module, contents: Contents) -> float:
    return _diffusers(module, contents, older=True)


_SCALES: Final[Mapping[str, Callable[[Module, Contents], float]]] = {
    "plain": _plain,
    "kohya": _kohya,
    "diffusers": _current,
    "diffusers-0.35": _older,
}
