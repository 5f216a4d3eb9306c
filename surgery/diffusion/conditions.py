"""What a U-Net reads of prompts: token features, and in SDXL a pooled feature and the picture's size too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.diffusion.models import Models, config_of
from surgery.diffusion.offload import device_and_dtype, resident
from surgery.diffusion.text import (
    encode_prompts,
    pieces_needed,
    pieces_of,
    side_by_side,
    tokens_of,
    warn_of_long_prompts,
)
from surgery.errors import SurgeryError

# as in encode_prompts
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Some prompts as a U-Net reads them; ``pooled`` is None where it reads token features alone."""

    features: Float[Tensor, "prompts tokens width"]
    pooled: Float[Tensor, "prompts pooled"] | None = None

    def select(self, rows: Any) -> "Reading":
        """The reading of some of the prompts; rows as an index, a slice or a list."""
        return Reading(
            features=self.features[rows], pooled=None if self.pooled is None else self.pooled[rows]
        )

    def to(self, like: Tensor) -> "Reading":
        """The same in the place and type of a tensor."""
        return Reading(
            features=self.features.to(like), pooled=None if self.pooled is None else self.pooled.to(like)
        )

    def repeated(self, count: int) -> "Reading":
        """The reading of one prompt for so many pictures."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Reading(features=self.features.expand(count, -1, -1), pooled=pooled)

    def as_long_as(self, other: "Reading") -> "Reading":
        """The same pieces as often as it takes both to have as many; attention does not see repeats."""
        mine, theirs = self.features.shape[1], other.features.shape[1]
        times = math.lcm(mine, theirs) // mine
        return self if times == 1 else Reading(features=self.features.repeat(1, times, 1), pooled=self.pooled)

    def added(self, height: int, width: int) -> dict[str, Tensor] | None:
        """What is read beside the features for pictures of a size in pixels; None where nothing is."""
        return None if self.pooled is None else size_conditions(self.pooled, height, width)


def together(readings: Sequence[Reading]) -> Reading:
    """The prompts of several readings as one."""
    pooled = [reading.pooled for reading in readings if reading.pooled is not None]
    features = torch.cat([reading.features for reading in readings])
    return Reading(features=features, pooled=torch.cat(pooled) if pooled else None)


def size_conditions(pooled: Float[Tensor, "prompts pooled"], height: int, width: int) -> dict[str, Tensor]:
    """SDXL's further conditions: the pooled feature, and the sizes of an uncropped picture of this size.

    Source: ``StableDiffusionXLPipeline._get_add_time_ids`` of diffusers 0.42.
    """
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=pooled.dtype, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


def two_encoders(models: Any) -> bool:
    """Whether a pipeline reads prompts with two text encoders, as SDXL does."""
    return getattr(models, "text_encoder_2", None) is not None


def read_prompts(
    models: Models,
    prompts: Sequence[str],
    clip_skip: int = 0,
    *,
    in_pieces: bool = False,
    gradients: bool = False,
) -> Reading:
    """The prompts as the models' U-Net reads them, in their order; equal prompts are encoded once.

    With ``gradients`` they flow back into the text encoders; ``in_pieces`` reads long prompts whole
    (``encode_prompts``), the pooled feature being that of the first piece.

    Of SDXL the streams before the last block of both encoders, side by side and without final norm, and the
    second encoder's projected feature; ``clip_skip`` leaves further blocks out.

    Raises:
        SurgeryError: as ``encode_prompts``.

    Source: ``encode_prompt`` of both stock pipelines of diffusers 0.42.
    """
    if not two_encoders(models):
        given = (models.tokenizer, models.text_encoder, prompts, clip_skip)
        return Reading(features=encode_prompts(*given, in_pieces=in_pieces, gradients=gradients))
    if not prompts:
        raise SurgeryError(
            "no prompts to encode; expected at least one. Pass the prompts as a list of texts."
        )
    second: Any = models
    unique = list(dict.fromkeys(prompts))
    if not in_pieces:
        warn_of_long_prompts(models.tokenizer, unique)
    pieces = pieces_needed(models.tokenizer, unique) if in_pieces else 1
    with torch.set_grad_enabled(gradients):
        first, _ = _penultimate(models.tokenizer, models.text_encoder, unique, clip_skip, pieces)
        other, pooled = _penultimate(second.tokenizer_2, second.text_encoder_2, unique, clip_skip, pieces)
    place = {prompt: row for row, prompt in enumerate(unique)}
    whole = Reading(features=torch.cat([first, other.to(first)], -1), pooled=pooled.to(first))
    return whole.select([place[prompt] for prompt in prompts])


def read_without(models: Models, negative: str, *, in_pieces: bool = False) -> Reading:
    """The unconditional side of guidance: the negative prompt; where SDXL was trained so, zeros for none."""
    reading = read_prompts(models, [negative], in_pieces=in_pieces)
    config: Mapping[str, Any] = getattr(models, "config", None) or {}
    if negative or reading.pooled is None or not config.get("force_zeros_for_empty_prompt", False):
        return reading
    return Reading(features=torch.zeros_like(reading.features), pooled=torch.zeros_like(reading.pooled))


def _penultimate(
    tokenizer: Any, encoder: nn.Module, prompts: Sequence[str], clip_skip: int, pieces: int
) -> tuple[Tensor, Tensor]:
    blocks = config_of(encoder).num_hidden_layers
    if not 0 <= clip_skip < blocks - 1:
        raise SurgeryError(
            f"clip_skip is {clip_skip}; this text encoder has {blocks} blocks, of which the last is left out "
            f"anyway. Use 0 to {blocks - 2}."
        )
    device, dtype = device_and_dtype(encoder)
    features, pooled = [], []
    with resident(encoder):
        for start in range(0, len(prompts), _BATCH):
            some = prompts[start : start + _BATCH]
            tokens = tokens_of(tokenizer, some) if pieces == 1 else pieces_of(tokenizer, some, pieces)
            found = encoder(tokens.input_ids.to(device), output_hidden_states=True)
            features.append(side_by_side(found.hidden_states[-(clip_skip + 2)].to(dtype), pieces))
            pooled.append(found[0].to(dtype)[::pieces])
    return torch.cat(features), torch.cat(pooled)
