"""Models that wait in main memory and come to the device one at a time, when they are used."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from surgery.diffusion.models import Models

Move = Callable[[nn.Module, torch.device], object]


def _moved(module: nn.Module, device: torch.device) -> object:
    return module.to(device)


class _Group:
    """Models that make room for each other on one device."""

    def __init__(self, modules: tuple[nn.Module, ...], device: torch.device, move: Move) -> None:
        self.device = device
        self._move = move
        self._users: Counter[int] = Counter()
        self._modules = {id(module): module for module in modules}
        self._resident: set[int] = set()

    @contextmanager
    def resident(self, module: nn.Module) -> Iterator[None]:
        own = id(module)
        for other in [other for other in self._resident if other != own and not self._users[other]]:
            self._move(self._modules[other], torch.device("cpu"))
            self._resident.discard(other)
        if own not in self._resident:
            self._move(module, self.device)
            self._resident.add(own)
        self._users[own] += 1
        try:
            yield
        finally:
            self._users[own] -= 1


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
    parts = (models.text_encoder, models.unet, models.vae)
    group = _Group(parts, torch.device(device), move)
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
