"""A patch in a living pipeline, for as long as a context lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from surgery.checkpoint.digest import tensor_digest
from surgery.errors import PatchError, nearest, raise_all
from surgery.names import split
from surgery.patch.file import patch_digest
from surgery.patch.match import State, refuse_applied, state_of
from surgery.patch.model import Patch
from surgery.patch.rounding import bits_of
from surgery.patch.terms import refuse_strength

P = TypeVar("P")

_STACK = "surgery_applied"  # attribute of a patched parameter: the layers on it, innermost context last


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layer:
    """One context on one parameter: which patch, and the bits it found."""

    patch: str
    original: Tensor


@contextmanager
def applied(
    pipeline: P, patch: Patch, strength: float = 1.0, *, allow_other_base: bool = False
) -> Iterator[P]:
    """The pipeline with the patch in its weights; at the end, also by an exception, the old bits return.

    The weights are those of the applied checkpoint loaded in the pipeline's precision: a half-precision base
    loaded as float32 is rounded as its file would be. Only where the pipeline is narrower than the base's
    file do they differ, by the rounding of the old weight. Contexts nest; patches of one base add up.

    Args:
        pipeline: A diffusers pipeline, or any object with the touched components (``text_encoder``, ``unet``,
            ...) as attributes. It comes back.
        patch: What to apply.
        strength: 1 as made, 0 nothing, -1 the opposite.
        allow_other_base: Take weights with other values, such as those of a fine-tune of the base; the change
            is added to them, and the outcome is not the recorded one.

    Raises:
        PatchError: listing every weight that is missing, away on another device (meta), or, unless allowed,
            not the base's; when the patch is in already; or when the strength is not finite.
    """
    refuse_strength(strength)
    digest = patch_digest(patch)
    parameters = _parameters(pipeline, patch)
    edited = _edited(parameters, patch, digest, strength, allow_other_base)
    layers: dict[str, _Layer] = {}
    try:
        for name, parameter in parameters.items():
            layers[name] = _remember(parameter, digest)
            _write(parameter, edited.pop(name))
        yield pipeline
    finally:
        faults = [
            fault for name, layer in layers.items() for fault in _restore(name, parameters[name], layer)
        ]
        raise_all(PatchError, faults)


def _parameters(pipeline: object, patch: Patch) -> dict[str, nn.Parameter]:
    """The living parameter of each touched tensor, in the module tree of any transformers."""
    found: dict[str, nn.Parameter] = {}
    faults = []
    for name, change in patch.changes.items():
        component, path = split(name)
        module = getattr(pipeline, component, None)
        if not isinstance(module, nn.Module):
            faults.append(f"{name!r} cannot be patched: the pipeline has no {component}. Is it loaded?")
            continue
        known = dict(module.named_parameters())
        parameter = known.get(path, known.get(path.removeprefix("text_model.")))
        if parameter is None:
            guess = nearest(path, known)
            faults.append(
                f"{name!r} is not in the pipeline (nearest: {guess!r}). Is it this patch's model? A loaded "
                "LoRA renames weights; unload it first."
            )
        elif parameter.is_meta or not parameter.dtype.is_floating_point:
            faults.append(
                f"{name!r} is {parameter.dtype} on {parameter.device}; load it whole and unquantised."
            )
        elif tuple(parameter.shape) != change.shape:
            faults.append(
                f"{name!r} has shape {tuple(parameter.shape)}; the patch was made for {change.shape}."
            )
        else:
            found[name] = parameter
    raise_all(PatchError, faults)
    return found


def _edited(
    parameters: dict[str, nn.Parameter], patch: Patch, digest: str, strength: float, allow_other: bool
) -> dict[str, Tensor]:
    """The new value of each parameter, in the parameter's own precision, on the CPU."""
    faults, states = [], {}
    edited = {}
    for name, parameter in parameters.items():
        stored = _as_stored(parameter, patch.changes[name].dtype)
        states[name] = _state(name, parameter, stored, patch, digest)
        if allow_other and (stored is None or states[name].before is None):
            # a fine-tune may hold more digits than the base's file: they are kept
            edited[name] = patch.edited(name, parameter.detach().cpu(), strength, _below_all(parameter))
        elif stored is None or states[name].before is None:
            faults.append(
                f"{name!r} of the pipeline does not hold the numbers this patch was made for. Is it another "
                "base, changed since, or loaded in a precision that lost digits? Load it in the base's own, "
                "or allow another base (allow_other_base)."
            )
        else:
            base = _before_all(parameter, patch.changes[name].dtype)
            edited[name] = patch.edited(name, stored, strength, base).to(parameter.dtype)
    refuse_applied(states, "the pipeline")
    raise_all(PatchError, faults)
    return edited


def _as_stored(value: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A living weight as the base's file has it; None when it is not a number of that type."""
    live = value.detach().cpu()
    stored = live.to(dtype)
    same = torch.equal(bits_of(stored.to(live.dtype)), bits_of(live))
    return stored if same else None


def _below_all(parameter: nn.Parameter) -> Tensor | None:
    """A weight as it was before any context; None where no context is open."""
    layers: list[_Layer] = getattr(parameter, _STACK, [])
    return layers[0].original.cpu() if layers else None


def _before_all(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor | None:
    """The same as the base's file has it; None also when it is not a number of that type."""
    below = _below_all(parameter)
    return None if below is None else _as_stored(below, dtype)


def _state(name: str, parameter: nn.Parameter, stored: Tensor | None, patch: Patch, digest: str) -> State:
    """How a living weight stands to the patch; below other contexts, its value before them counts too."""
    change = patch.changes[name]
    layers: list[_Layer] = getattr(parameter, _STACK, [])
    if any(layer.patch == digest for layer in layers):
        return State(before=None, after="bytes")
    if stored is None:
        return State(before=None, after=None)
    state = state_of(change, tensor_digest(name, stored), parameter.dtype)
    if state.before is None:
        below = _before_all(parameter, change.dtype)
        if below is not None:
            return state_of(change, tensor_digest(name, below), parameter.dtype)
    return state


def _remember(parameter: nn.Parameter, patch: str) -> _Layer:
    layer = _Layer(patch=patch, original=parameter.detach().clone())
    setattr(parameter, _STACK, [*getattr(parameter, _STACK, []), layer])
    return layer


@torch.no_grad()
def _write(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def _restore(name: str, parameter: nn.Parameter, layer: _Layer) -> list[str]:
    """Bring the old bits back; the fault, when an inner context is still open."""
    layers: list[_Layer] = getattr(parameter, _STACK)
    if layers[-1] is not layer:
        return [f"the contexts on {name!r} were closed out of order; close the innermost first."]
    _write(parameter, layer.original)
    if len(layers) > 1:
        setattr(parameter, _STACK, layers[:-1])
    else:
        delattr(parameter, _STACK)
    return []
