"""Other tensors in the place of a model's weights, for the length of a ``with`` block; the weights stay."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from surgery.anatomy.taps import frozen
from surgery.errors import MethodError, nearest, raise_all
from surgery.names import canonical, split


def weights_of(models: Any, names: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The weights of some canonical names, from the components of a pipeline.

    Raises:
        MethodError: naming those that the models do not have.
    """
    places = _places(models, names)
    return {name: owner._parameters[path] for name, (owner, path) in places.items()}  # type: ignore[misc]  # none is None


@contextmanager
def standing_in(models: Any, values: Mapping[str, Tensor], *, gradients: bool = False) -> Iterator[None]:
    """Inside, the models compute with ``values`` in the place of their weights of these names.

    All else is in evaluation mode and asks for no gradients; with ``gradients`` the values do. The models'
    own weights, flags and gradients are as they were when the block ends, also by an error.

    Raises:
        MethodError: when a name is none of the models', or a value has another shape.
    """
    places = _places(models, tuple(values))
    raise_all(
        MethodError,
        [
            f"{name!r} has shape {tuple(owner._parameters[path].shape)}; a value of shape "  # type: ignore[union-attr]  # see weights_of
            f"{tuple(values[name].shape)} cannot stand in its place."
            for name, (owner, path) in places.items()
            if values[name].shape != owner._parameters[path].shape  # type: ignore[union-attr]  # see weights_of
        ],
    )
    with ExitStack() as stack:
        parts = {split(name)[0]: getattr(models, split(name)[0]) for name in values}
        others = [getattr(models, part, None) for part in ("unet", "text_encoder", "text_encoder_2")]
        stack.enter_context(frozen(*dict.fromkeys([*parts.values(), *others])))
        for name, (owner, path) in places.items():
            value = values[name]
            parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach(), gradients)
            stack.callback(owner._parameters.__setitem__, path, owner._parameters[path])
            owner._parameters[path] = parameter
        yield


def _places(models: Any, names: tuple[str, ...]) -> dict[str, tuple[nn.Module, str]]:
    """The module that owns each weight, and the weight's name in it."""
    known: dict[str, tuple[nn.Module, str]] = {}
    for component in {split(name)[0] for name in names}:
        module = getattr(models, component, None)
        if not isinstance(module, nn.Module):
            continue
        for path, owner in module.named_modules():
            for own, weight in owner.named_parameters(recurse=False):
                if weight is not None:
                    known[canonical(component, f"{path}.{own}" if path else own)] = (owner, own)
    missing = [name for name in names if name not in known]
    raise_all(
        MethodError,
        [
            f"the models have no weight {name!r}; nearest is {nearest(name, known)!r}. Is a LoRA fused into "
            "them, or are they quantised?"
            for name in missing
        ],
    )
    return {name: known[name] for name in names}
