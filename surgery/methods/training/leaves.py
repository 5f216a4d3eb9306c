"""What is trained: factors beside the layers, or the weights themselves; and the change that came of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from surgery.anatomy import frozen, standing_in, weights_of
from surgery.delta import Delta, Dense, LowRank
from surgery.diffusion import Models
from surgery.names import canonical, split

_ADAPTER: Final = "trained"
_DOWN, _UP = ":down", ":up"


@dataclass(frozen=True, slots=True)
class Leaves:
    """Parameters that gather gradients.

    Attributes:
        parameters: By canonical name of the weight; factors have ``:down`` or ``:up`` behind it.
        absent: Inside of the block that it makes, the models compute as if nothing was trained.
    """

    parameters: Mapping[str, nn.Parameter]
    absent: Callable[[], AbstractContextManager[None]]

    def values(self) -> dict[str, Tensor]:
        """Copies of them, in float32 in main memory."""
        return {name: leaf.detach().float().cpu().clone() for name, leaf in self.parameters.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Give them other values."""
        for name, leaf in self.parameters.items():
            leaf.copy_(values[name])


@contextmanager
def weights_alone(
    models: Models, names: Sequence[str], start: Mapping[str, Tensor] | None = None
) -> Iterator[Leaves]:
    """Weights of these names as leaves, from where they are or from ``start``; they stay as they were."""
    base = {name: one.detach() for name, one in weights_of(models, tuple(names)).items()}
    begun = {
        name: one if start is None or name not in start else start[name].to(one) for name, one in base.items()
    }
    parameters = {name: nn.Parameter(one.float().clone()) for name, one in begun.items()}
    with standing_in(models, parameters, gradients=True):
        yield Leaves(parameters, lambda: standing_in(models, base))


@contextmanager
def factors_of(models: Models, names: Sequence[str], rank: int, seed: int) -> Iterator[Leaves]:
    """Low-rank factors beside the U-Net's layers of these names; it is as it was when the block ends."""
    unet: Any = models.unet
    paths = [split(name)[1].removesuffix(".weight") for name in names]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=paths)
    had = hasattr(unet, "peft_config")
    with frozen(unet):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                inject_adapter_in_model(config, unet, _ADAPTER)
            parameters = {}
            for path in paths:
                layer, name = unet.get_submodule(path), canonical("unet", f"{path}.weight")
                parameters[name + _DOWN] = layer.lora_A[_ADAPTER].weight
                parameters[name + _UP] = layer.lora_B[_ADAPTER].weight
            yield Leaves(parameters, lambda: _disabled([unet.get_submodule(path) for path in paths]))
        finally:
            for path in paths:
                layer = unet.get_submodule(path)
                if hasattr(layer, "base_layer"):
                    parent, _, own = path.rpartition(".")
                    setattr(unet.get_submodule(parent), own, layer.base_layer)
            if not had and hasattr(unet, "peft_config"):
                del unet.peft_config


@contextmanager
def _disabled(layers: Sequence[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in layers:
            # enabling asks for gradients of every factor, which is what they had
            stack.callback(layer.enable_adapters, True)
            layer.enable_adapters(False)
        yield


def delta_of(models: Models, values: Mapping[str, Tensor]) -> Delta:
    """The change that trained values make."""
    if any(name.endswith(_DOWN) for name in values):
        names = [name.removesuffix(_DOWN) for name in values if name.endswith(_DOWN)]
        return Delta(
            {
                name: LowRank(*(values[name + end].flatten(1).float().cpu() for end in (_UP, _DOWN)))
                for name in names
            }
        )
    base = weights_of(models, tuple(values))
    return Delta(
        {
            name: Dense(value.float().cpu() - base[name].detach().float().cpu())
            for name, value in values.items()
        }
    )
