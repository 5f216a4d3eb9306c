"""What a step of the sampler predicts: classifier-free guidance, or whatever a guide says."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.diffusion.conditions import read_prompts, read_without
from surgery.diffusion.models import Models
from surgery.diffusion.pixels import scale_factor
from surgery.diffusion.predict import guided_noise, predict_under


class Guide(Protocol):
    """Says what each step of the sampler predicts."""

    def begin(
        self, prompts: Sequence[str], latents: Float[Tensor, "pictures channels height width"], steps: int
    ) -> Callable[[Tensor, Any], Tensor]:
        """The prediction of each step for the pictures of one batch, from latents and timestep.

        Args:
            prompts: One for each picture.
            latents: What the sampler starts from.
            steps: How often the prediction will be asked for.
        """


class PromptGuide:
    """Classifier-free guidance; prompts are read once for all batches."""

    def __init__(
        self,
        models: Models,
        prompts: Sequence[str],
        guidance: float,
        negative: str = "",
        clip_skip: int = 0,
        *,
        in_pieces: bool = False,
    ) -> None:
        self._models, self._guidance = models, guidance
        unique = list(dict.fromkeys(prompts))
        self._place = {prompt: row for row, prompt in enumerate(unique)}
        text = read_prompts(models, unique, clip_skip, in_pieces=in_pieces)
        self._text, self._without = text, None
        if guidance > 1:
            without = read_without(models, negative, in_pieces=in_pieces)
            self._text, self._without = text.as_long_as(without), without.as_long_as(text)

    def begin(self, prompts: Sequence[str], latents: Tensor, steps: int) -> Callable[[Tensor, Any], Tensor]:
        """See ``Guide``."""
        models, guidance = self._models, self._guidance
        text = self._text.select([self._place[prompt] for prompt in prompts]).to(latents)
        if self._without is None:
            return lambda noisy, timestep: predict_under(models, noisy, timestep, text)
        other = self._without.to(latents).repeated(len(prompts))
        height, width = (side * scale_factor(models.vae) for side in latents.shape[2:])
        added, other_added = text.added(height, width), other.added(height, width)
        return lambda noisy, timestep: guided_noise(
            models.unet, noisy, timestep, text.features, other.features, guidance, added, other_added
        )


class PassingGuide:
    """Another guide, and what it was asked about at some steps, batch after batch.

    Args:
        inner: Predicts.
        steps: Numbers of the steps, from noise to picture.

    Attributes:
        noisy: Latents in float32 in main memory, step by step.
        timesteps: Of each.
    """

    def __init__(self, inner: Guide, steps: Sequence[int]) -> None:
        self._inner, self._steps = inner, frozenset(steps)
        self.noisy: list[Tensor] = []
        self.timesteps: list[Tensor] = []

    def begin(self, prompts: Sequence[str], latents: Tensor, steps: int) -> Callable[[Tensor, Any], Tensor]:
        """See ``Guide``."""
        predict, number = self._inner.begin(prompts, latents, steps), -1

        def keep(noisy: Tensor, timestep: Any) -> Tensor:
            nonlocal number
            number += 1
            if number in self._steps:
                self.noisy.append(noisy.float().cpu().clone())
                self.timesteps.append(torch.full((len(noisy),), int(timestep)))
            return predict(noisy, timestep)

        return keep
