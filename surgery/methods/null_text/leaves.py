"""What is trained: factors beside the layers, or the weights themselves; and the change that came of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from surgery.anatomy import frozen, standing_in
from surgery.delta import Delta, Dense, LowRank
from surgery.diffusion import Models
from surgery.methods.null_text.settings import Layers, TrainSettings
from surgery.names import canonical

_ADAPTER: Final = "look"
_DOWN, _UP = ":down", ":up"

Leaves = Mapping[str, nn.Parameter]
"""By canonical name of the weight; factors have ``:down`` or ``:up`` behind it."""


@contextmanager
def leaves_of(models: Models, settings: TrainSettings) -> Iterator[Leaves]:
    """Parameters that gather gradients inside; the U-Net is as it was when the block ends."""
    if settings.form == "full":
        weights = {
            canonical("unet", path): weight
            for path, weight in models.unet.named_parameters()
            if ".attn2." not in f".{path}"
        }
        leaves = {name: nn.Parameter(weight.detach().float().clone()) for name, weight in weights.items()}
        with standing_in(models, leaves, gradients=True):
            yield leaves
        return
    with frozen(models.unet), _adapted(models.unet, settings) as factors:
        yield factors


def layers_of(unet: nn.Module, layers: Layers) -> list[str]:
    """Paths of the layers that have factors: inside of blocks, and none of cross-attention."""
    found = []
    for path, module in unet.named_modules():
        parts = path.split(".")
        inside = parts[0] in ("down_blocks", "mid_block", "up_blocks") and "attn2" not in parts
        wanted = {
            "attention": isinstance(module, nn.Linear) and "attn1" in parts,
            "linear": isinstance(module, nn.Linear),
            "all": isinstance(module, nn.Linear | nn.Conv2d),
        }[layers]
        if inside and wanted:
            found.append(path)
    return found


@contextmanager
def _adapted(unet: Any, settings: TrainSettings) -> Iterator[Leaves]:
    paths = layers_of(unet, settings.layers)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=paths)
    had = hasattr(unet, "peft_config")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            inject_adapter_in_model(config, unet, _ADAPTER)
        leaves = {}
        for path in paths:
            layer, name = unet.get_submodule(path), canonical("unet", f"{path}.weight")
            leaves[name + _DOWN] = layer.lora_A[_ADAPTER].weight
            leaves[name + _UP] = layer.lora_B[_ADAPTER].weight
        yield leaves
    finally:
        for path in paths:
            layer = unet.get_submodule(path)
            if hasattr(layer, "base_layer"):
                parent, _, own = path.rpartition(".")
                setattr(unet.get_submodule(parent), own, layer.base_layer)
        if not had and hasattr(unet, "peft_config"):
            del unet.peft_config


def delta_of(models: Models, values: Mapping[str, Tensor]) -> Delta:
    """The change that trained values make."""
    if any(name.endswith(_DOWN) for name in values):
        names = [name.removesuffix(_DOWN) for name in values if name.endswith(_DOWN)]
        return Delta(
            {
                name: LowRank(values[name + _UP].flatten(1).float(), values[name + _DOWN].flatten(1).float())
                for name in names
            }
        )
    base = {canonical("unet", path): one.detach() for path, one in models.unet.named_parameters()}
    return Delta({name: Dense(value.float() - base[name].float().cpu()) for name, value in values.items()})
