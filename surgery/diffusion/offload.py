"""Models that wait in main memory and come to the device one at a time, when they are used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from surgery.diffusion.models import Models

Move = Callable[[nn.Module, torch.device], object]


def _moved(module: nn.Module, device: torch.device) -> object:
    return module.to(device)


class _Group:
    """Models that make room for each other on one device; it keeps none of them alive."""

    def __init__(self, device: torch.device, move: Move) -> None:
        self.device = device
        self._move = move
        self._users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._resident: WeakSet[nn.Module] = WeakSet()

    @contextmanager
    def resident(self, module: nn.Module) -> Iterator[None]:
        for other in list(self._resident):
            if other is not module and not self._users.get(other):
                self._move(other, torch.device("cpu"))
                self._resident.discard(other)
        if module not in self._resident:
            self._move(module, self.device)
            self._resident.add(module)
        self._users[module] = self._users.get(module, 0) + 1
        try:
            yield
        finally:
            self._users[module] -= 1


# beside the modules, not in them: a copy of a module belongs to no group
_GROUPS: Final[WeakKeyDictionary[nn.Module, _Group]] = WeakKeyDictionary()


def offload(models: Models, device: torch.device | str, *, move: Move = _moved) -> None:
    """From now on, text encoder, U-Net and VAE lie in main memory and run on ``device`` in turns.

    The device needs room for the largest of them in place of all three. Weights stay what they are; a model
    that is not in use leaves when another one comes, and no sooner.

    Args:
        models: A pipeline whose models lie in main memory.
        device: Where they run.
        move: Moves a module to a device.
    """
    group = _Group(torch.device(device), move)
    second = getattr(models, "text_encoder_2", None)  # SDXL's
    parts = (models.text_encoder, models.unet, models.vae, *([] if second is None else [second]))
    _GROUPS.update(dict.fromkeys(parts, group))


@contextmanager
def resident(module: Any) -> Iterator[None]:
    """The module on the device where it runs; does nothing for one that was never offloaded."""
    group = _GROUPS.get(module)
    if group is None:
        yield
        return
    with group.resident(module):
        yield


def is_offloaded(module: nn.Module) -> bool:
    """Whether the module comes to its device only when it is used."""
    return module in _GROUPS


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module runs, which is where its weights lie unless it is offloaded, and its weights' type."""
    weight = next(module.parameters())
    group = _GROUPS.get(module)
    return weight.device if group is None else group.device, weight.dtype
