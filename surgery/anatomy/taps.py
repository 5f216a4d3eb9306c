"""Taps: read or replace what a module gives, for the length of a ``with`` block, and always let go."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def reading(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """A dict that holds each module's latest output under its key, filled by the passes made inside.

    Blocks of transformers 4 return a tuple; its first entry is the stream.
    """
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[key] = _stream(output)

        return hook

    with _hooked([(module, keep(key)) for key, module in modules.items()]):
        yield seen


@contextmanager
def reading_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """As ``reading``, for the first argument of each module."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any, _output: Any) -> None:
            seen[key] = inputs[0]

        return hook

    with _hooked([(module, keep(key)) for key, module in modules.items()]):
        yield seen


@contextmanager
def replacing(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, ``module`` gives ``change(output)`` instead of its output."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        changed = change(_stream(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with _hooked([(module, hook)]):
        yield


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, the modules are in evaluation mode and ask for no gradients of their own; then as before."""
    present = [module for module in modules if module is not None]
    training = [(part, part.training) for module in present for part in module.modules()]
    wanting = [weight for module in present for weight in module.parameters() if weight.requires_grad]
    try:
        for module in present:
            module.eval()
        for weight in wanting:
            weight.requires_grad_(False)
        yield
    finally:
        for part, before in training:
            part.training = before
        for weight in wanting:
            weight.requires_grad_(True)


@contextmanager
def _hooked(pairs: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    handles = []
    try:
        for module, hook in pairs:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stream(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream
