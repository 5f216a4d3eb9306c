"""The null context: what cross-attention reads while a look is learned, computed once."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.anatomy import frozen


class _Known(nn.Module):
    """A projection of the one context there is."""

    def __init__(self, value: Float[Tensor, "1 tokens width"]) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, given: Tensor, *_: Any, **__: Any) -> Tensor:
        """The projection, for as many pictures as there are."""
        value: Tensor = self.get_buffer("value")
        return value.expand(len(given), -1, -1)


def cross_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """Every cross-attention by its path."""
    return {path: module for path, module in unet.named_modules() if path.split(".")[-1] == "attn2"}


@contextmanager
def known_context(unet: nn.Module, features: Float[Tensor, "1 tokens width"]) -> Iterator[None]:
    """Inside, keys and values of cross-attention are those of one context, whatever the U-Net is given.

    They are computed once; the output is the same to the bit (4.2, 6 of the study).
    """
    with ExitStack() as stack:
        for attention in cross_attentions(unet).values():
            for name in ("to_k", "to_v"):
                layer = getattr(attention, name)
                with torch.no_grad():
                    known = _Known(layer(features.to(next(layer.parameters()))).detach())
                stack.callback(setattr, attention, name, layer)
                setattr(attention, name, known)
        yield


@contextmanager
def collapsed(unet: nn.Module, constants: dict[str, Float[Tensor, " channels"]]) -> Iterator[None]:
    """Inside, every cross-attention gives one vector for all tokens, as published.

    Args:
        unet: Whose cross-attention.
        constants: The vector of each, by path.

    Source: arXiv 2312.08195; 1.3 of the study.
    """
    with ExitStack() as stack:
        for path, attention in cross_attentions(unet).items():
            handle = attention.register_forward_hook(_constant(constants[path]))
            stack.callback(handle.remove)
        yield


def _constant(value: Tensor) -> Any:
    def give(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
        return value.to(output).expand_as(output)

    return give


@torch.no_grad()
def constants_of(
    unet: Any, points: Any, features: Float[Tensor, "1 tokens width"]
) -> tuple[dict[str, Float[Tensor, " channels"]], dict[str, float]]:
    """The mean output of every cross-attention under one context, and the share of its size that varies.

    Args:
        unet: The U-Net.
        points: Noisy latents, their timesteps and further conditions, batch by batch.
        features: The context.

    Returns:
        The vector of each cross-attention, and by path √(variance over tokens and pictures / mean square):
        0 where it is a constant already.
    """
    sums: dict[str, list[Tensor]] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _given: Any, output: Tensor) -> None:
            flat = output.flatten(0, 1).double()
            nothing = torch.zeros(flat.shape[1], dtype=torch.float64)
            seen = sums.setdefault(path, [nothing, nothing.clone(), torch.zeros(())])
            seen[0] += flat.sum(0).cpu()
            seen[1] += flat.square().sum(0).cpu()
            seen[2] += len(flat)

        return hook

    with ExitStack() as stack:
        stack.enter_context(frozen(unet))
        for path, attention in cross_attentions(unet).items():
            stack.callback(attention.register_forward_hook(keep(path)).remove)
        for noisy, timesteps, added in points:
            more = {} if added is None else {"added_cond_kwargs": added}
            context = features.to(noisy).expand(len(noisy), -1, -1)
            unet(noisy, timesteps, encoder_hidden_states=context, return_dict=False, **more)
    means = {path: (total / count) for path, (total, _, count) in sums.items()}
    varies = {}
    for path, (_, squares, count) in sums.items():
        power = float((squares / count).sum())
        spread = max(0.0, power - float(means[path].square().sum()))
        varies[path] = (spread / power) ** 0.5 if power > 0 else 0.0
    return means, varies
