"""How pictures are noised: the checkpoint's own table of noise levels."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import MethodError


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """How much of a picture is left at each training timestep: x_t = √ᾱ_t x₀ + √(1 - ᾱ_t) ε."""

    remaining: Float[Tensor, "timesteps"]
    predicts: str

    def spread(self, count: int) -> list[int]:
        """So many timesteps, in the middle of equal parts, from clean to noisy."""
        most = len(self.remaining)
        return [(2 * part + 1) * most // (2 * count) for part in range(count)]

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t for each row's timestep."""
        kept, added = self._factors(timesteps, clean)
        return kept * clean + added * noise

    def truth(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect U-Net would say: the noise, or the velocity where the checkpoint predicts that."""
        kept, added = self._factors(timesteps, clean)
        return noise if self.predicts == "epsilon" else kept * noise - added * clean

    def _factors(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        remaining = self.remaining.to(like.device)[timesteps].to(torch.float32)
        shape = (-1, *[1] * (like.ndim - 1))
        return remaining.sqrt().view(shape), (1 - remaining).sqrt().view(shape)


def noise_schedule(scheduler: Any) -> NoiseSchedule:
    """The schedule of a diffusers scheduler.

    Raises:
        MethodError: when it is no noising schedule with a table of ᾱ, or the U-Net predicts something else.
    """
    remaining = getattr(scheduler, "alphas_cumprod", None)
    predicts = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
    if not isinstance(remaining, Tensor) or predicts not in {"epsilon", "v_prediction"}:
        raise MethodError(
            f"{type(scheduler).__name__} (prediction {predicts!r}) has no table of noise levels for "
            "epsilon or v_prediction; expected a scheduler of Stable Diffusion 1.x, 2.x or XL. Without one "
            "there is mode 'text'."
        )
    return NoiseSchedule(remaining=remaining.detach().cpu(), predicts=predicts)
