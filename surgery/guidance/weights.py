"""Patches in some branches of a step and not in others, with one U-Net in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from surgery.anatomy import standing_in, weights_of
from surgery.delta import LowRank
from surgery.diffusion import Models, device_and_dtype
from surgery.errors import MethodError
from surgery.names import split
from surgery.patch import Patch, applied

Strengths: TypeAlias = tuple[float, ...]
"""Of each patch, in the order they were given; 0 is the base without it."""


class BranchWeights(Protocol):
    """Weights that can be those of several strengths."""

    @property
    def rowwise(self) -> bool:
        """Whether rows of one batch may have different strengths."""

    def at(self, rows: Sequence[Strengths]) -> Any:
        """A context in which the U-Net computes each row of a batch with the patches at its strengths."""


@dataclass(frozen=True, slots=True)
class SwappedWeights:
    """Whole weights for each combination of strengths, made beforehand; they change places for a pass.

    Fits every patch. Holds the changed weights once more for each combination beside the base, whose own
    weights stand for no strength.
    """

    models: Models
    values: dict[Strengths, dict[str, Tensor]]
    rowwise: bool = False

    @contextmanager
    def at(self, rows: Sequence[Strengths]) -> Iterator[None]:
        """All rows of a batch with the same strengths."""
        (strengths,) = set(rows)
        if not any(strengths):
            yield
            return
        device, _ = device_and_dtype(self.models.unet)  # an offloaded model is there by now
        values = {name: value.to(device) for name, value in self.values[strengths].items()}
        with standing_in(self.models, values):
            yield


def swapped_weights(
    models: Models, patches: Sequence[Patch], combinations: Sequence[Strengths]
) -> SwappedWeights:
    """The U-Net's weights at each combination of strengths, as the applied patches would leave them.

    Raises:
        PatchError: as ``applied``.
    """
    names = sorted({name for patch in patches for name in patch.changes if split(name)[0] == "unet"})
    values = {}
    for strengths in dict.fromkeys(one for one in combinations if any(one)):
        with patched(models, patches, strengths):
            live = weights_of(models, tuple(names))
            values[strengths] = {name: weight.detach().clone() for name, weight in live.items()}
    return SwappedWeights(models=models, values=values)


@contextmanager
def patched(models: Models, patches: Sequence[Patch], strengths: Strengths) -> Iterator[None]:
    """All parts of a pipeline with each patch at its strength; those at 0 are left out."""
    with ExitStack() as stack:
        for patch, strength in zip(patches, strengths, strict=True):
            if strength:
                stack.enter_context(applied(models, patch, strength))
        yield


@dataclass(frozen=True, slots=True, eq=False)
class _Factors:
    """One low-rank change of a layer: which patch it belongs to, and its two maps."""

    patch: int
    down: Tensor
    up: Tensor


class MixedWeights:
    """The patches' low-rank changes computed beside the layers, row by row of one batch.

    Nothing is rounded to the checkpoint's precision on the way, which applied patches are.
    """

    rowwise = True

    def __init__(self, models: Models, patches: Sequence[Patch]) -> None:
        self._layers = list(_layers(models, patches))

    @contextmanager
    def at(self, rows: Sequence[Strengths]) -> Iterator[None]:
        """Each row of a batch with strengths of its own; one for all where only one is given."""
        table = torch.tensor(rows, dtype=torch.float64)
        with ExitStack() as stack:
            for layer, factors in self._layers:
                handle = layer.register_forward_hook(_beside(factors, table))
                stack.callback(handle.remove)
            yield


def _beside(factors: Sequence[_Factors], table: Float[Tensor, "rows patches"]) -> Callable[..., Tensor]:
    def add(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for one in factors:
            strengths = table[:, one.patch]
            if not bool(strengths.any()):
                continue
            if len(strengths) not in (1, len(output)):
                raise MethodError(
                    f"a layer computes {len(output)} rows for a batch of {len(strengths)}; expected one "
                    "each. Compute the branches one after the other."
                )
            strengths = strengths.expand(len(output))
            rows = strengths.nonzero().flatten().to(output.device)
            # branches lie one after the other, and a slice is no copy
            together = int(rows[-1] - rows[0]) + 1 == len(rows)
            which: Any = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
            down, up = (factor.to(output.device) for factor in (one.down, one.up))
            low = _mapped(layer, given[0][which], down)
            change = conv2d(low, up) if up.ndim == 4 else linear(low, up)
            scale = strengths.to(output).view(-1, *[1] * (output.ndim - 1))
            output = output.index_add(0, rows, scale[which] * change)
        return output

    return add


def _mapped(layer: nn.Module, given: Tensor, down: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return conv2d(given, down, None, layer.stride, layer.padding, layer.dilation)
    return linear(given, down)


def _layers(models: Models, patches: Sequence[Patch]) -> Iterator[tuple[nn.Module, list[_Factors]]]:
    found: dict[str, list[_Factors]] = {}
    unfit: list[str] = []
    for number, patch in enumerate(patches):
        with applied(models, patch):  # refuses what is not the base's
            pass
        for term in patch.terms:
            for name, form in term.delta.terms.items():
                component, path = split(name)
                if component != "unet":
                    continue
                if not isinstance(form, LowRank) or not path.endswith(".weight"):
                    unfit.append(f"{name!r} by {type(form).__name__}")
                    continue
                factors = _factors(models.unet.get_parameter(path), form, number, term.strength)
                found.setdefault(path.removesuffix(".weight"), []).append(factors)
    if unfit:
        raise MethodError(
            f"{len(unfit)} changes are no factors of a layer's weight, {unfit[0]} among them; branches that "
            "share a pass need such. Set mode to 'swapped' (guide.gcfg.mode of recipes), or truncate it."
        )
    for path, changes in found.items():
        layer = models.unet.get_submodule(path)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise MethodError(
                f"unet/{path} is a {type(layer).__name__}; expected a linear layer or a convolution. Is a "
                "LoRA loaded?"
            )
        yield layer, changes


def _factors(weight: Tensor, form: LowRank, patch: int, strength: float) -> _Factors:
    left, right = (strength * form.left).to(weight), form.right.to(weight)
    if weight.ndim == 2:
        return _Factors(patch=patch, down=right, up=left)
    return _Factors(patch=patch, down=right.reshape(-1, *weight.shape[1:]), up=left[:, :, None, None])
