"""How far apart two texts are to the U-Net: distances in what its cross-attention reads."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surgery.errors import MethodError


def cross_attention_metric(unet: nn.Module, width: int) -> Float[Tensor, "width width"]:
    """M of d(c, c')² = (c - c')ᵀ M (c - c') / width: values and keys of all cross-attention layers together.

    M = width · ½ (Sᵥ / tr Sᵥ + Sₖ / tr Sₖ) with Sᵥ = Σ Wᵥᵀ Wᵥ over the layers and Sₖ alike, so that its mean
    eigenvalue is 1 and distances compare with plain mean squares.

    Raises:
        MethodError: when the U-Net has no cross-attention of this width.

    Source: own; 7, idea 10 of the study, with keys and values weighing the same.
    """
    layers = [module for name, module in unet.named_modules() if name.rpartition(".")[2] == "attn2"]
    fitting = [layer for layer in layers if _reads(layer, width)]
    if not fitting:
        raise MethodError(
            f"{type(unet).__name__} has {len(layers)} cross-attention layers, none of which reads features "
            f"of width {width}; expected some. Does the U-Net belong to this text encoder?"
        )
    values, keys = (_moment([getattr(layer, part) for layer in fitting]) for part in ("to_v", "to_k"))
    return width * (values / values.trace() + keys / keys.trace()) / 2


def _reads(layer: Any, width: int) -> bool:
    return all(getattr(layer, part).in_features == width for part in ("to_k", "to_v"))


@torch.no_grad()
def _moment(maps: list[Any]) -> Tensor:
    total = sum(linear.weight.float().T @ linear.weight.float() for linear in maps)
    return torch.as_tensor(total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Which tokens of a source prompt stand for which of its destination, with weights that add up to 1.

    From the subject's last token on both prompts go on alike, so tokens at equal distance behind it belong
    together: the subject, the words after it, the end and the padding. The subject weighs as much as all the
    others together: there are some seventy of them, and what is drawn follows the one.
    """

    source: Int[Tensor, "prompts pairs"]
    goal: Int[Tensor, "prompts pairs"]
    weight: Float[Tensor, "prompts pairs"]

    def select(self, rows: Int[Tensor, "chosen"]) -> "Alignment":
        """The alignment of some of the prompts."""
        return Alignment(source=self.source[rows], goal=self.goal[rows], weight=self.weight[rows])


def align(
    subjects: Int[Tensor, "prompts"],
    goals: Int[Tensor, "prompts"],
    named: Tensor,
    source_length: Int[Tensor, "prompts"],
    goal_length: Int[Tensor, "prompts"],
) -> Alignment:
    """Pairs of tokens from the subjects on.

    Args:
        subjects: Last subject token of each source prompt.
        goals: The same of each destination; of an empty one the token before its place.
        named: Whether the destination has a subject; where not, pairs begin one token behind.
        source_length: Tokens of each source context, padding included.
        goal_length: The same of each destination.
    """
    common = torch.minimum(source_length - subjects, goal_length - goals)
    steps = torch.arange(int(common.max()), device=subjects.device)[None]
    behind = (steps < common[:, None]) & (steps > 0)
    subject = (named[:, None] & (steps == 0)).float()
    weight = subject + behind.float() / behind.sum(1, keepdim=True).clamp_min(1)
    weight = weight / weight.sum(1, keepdim=True)
    valid = weight > 0
    # pairs without weight point at the subject, which exists
    steps = torch.where(valid, steps, torch.zeros_like(steps))
    return Alignment(source=subjects[:, None] + steps, goal=goals[:, None] + steps, weight=weight)


def token_distance(
    source: Float[Tensor, "prompts tokens width"],
    goal: Float[Tensor, "prompts pairs width"],
    alignment: Alignment,
    metric: Float[Tensor, "width width"],
) -> Float[Tensor, "prompts"]:
    """The mean distance of aligned tokens, one number per prompt. ``goal`` is gathered beforehand."""
    difference = gathered(source, alignment.source) - goal
    squares = ((difference @ metric) * difference).mean(-1)
    return (squares * alignment.weight).sum(1)


def gathered(features: Tensor, places: Tensor) -> Tensor:
    """The features at some positions of each prompt: (prompts, pairs, width)."""
    return features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))
