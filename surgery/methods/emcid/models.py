"""The models that an edit reads, and what of them enters a result's key."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.anatomy import Tokenizer, settings_text, tensor_bytes, weights_digest
from surgery.errors import MethodError
from surgery.record import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class EmcidModels:
    """The parts of a Stable Diffusion, unedited; they are read and never changed.

    Text features alone (mode "text" with the pooled metric) need the first two, the noise loss also the U-Net
    and the scheduler, drawn or given pictures also the VAE. Text encoder and losses work in float32; the
    U-Net and the VAE may be in half precision.
    """

    tokenizer: Tokenizer
    text_encoder: nn.Module
    unet: Any = None
    vae: Any = None
    scheduler: Any = None
    stored_dtype: torch.dtype | None = None
    """The type of the checkpoint's text weights on disk, where it is not that of ``text_encoder``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """How much of a picture is left at each training timestep: x_t = √ᾱ_t x₀ + √(1 - ᾱ_t) ε."""

    remaining: Float[Tensor, "timesteps"]
    predicts: str

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


def models_digest(models: EmcidModels, *, unet: bool, pictures: bool) -> dict[str, JSON]:
    """Digests of the models that a result depends on, with their types and places."""
    digests: dict[str, JSON] = {
        "text_encoder": weights_digest(models.text_encoder),
        "padding": models.tokenizer.pad_token_id,
    }
    if unet:
        digests["unet"] = weights_digest(models.unet)
        digests["unet_dtype"] = str(next(models.unet.parameters()).dtype)
        schedule = noise_schedule(models.scheduler)
        digests["schedule"] = hashlib.sha256(tensor_bytes(schedule.remaining)).hexdigest()
        digests["predicts"] = schedule.predicts
    if pictures:
        digests["vae"] = weights_digest(models.vae)
        digests["scaling"] = float(models.vae.config.scaling_factor)
        digests["scheduler"] = settings_text(models.scheduler)
    digests["device"] = next(models.text_encoder.parameters()).device.type
    digests["threads"] = torch.get_num_threads()
    return digests
