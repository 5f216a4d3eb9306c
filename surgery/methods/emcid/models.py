"""The models that an edit reads, and what of them enters a result's key."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy import TextStack, Tokenizer, settings_text, tensor_bytes, text_stack, weights_digest
from surgery.diffusion import noise_schedule, size_conditions
from surgery.diffusion.pixels import scale_factor
from surgery.record import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """One text encoder with its tokenizer, and what of it the U-Net reads.

    SD 1.x and 2.x read the stream behind the last block, after the final norm; SDXL that before the last
    block of both encoders (``penultimate``), without norm, and the projected pooled feature of its second.
    """

    component: str
    encoder: nn.Module
    tokenizer: Tokenizer
    penultimate: bool = False

    @property
    def stack(self) -> TextStack:
        """The encoder taken apart."""
        return text_stack(self.encoder)

    @property
    def behind(self) -> int:
        """How many blocks only the pooled feature goes through."""
        return 1 if self.penultimate else 0

    @property
    def projection(self) -> Any:
        """The map that the pooled feature goes through at last; None where there is none."""
        return getattr(self.encoder, "text_projection", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmcidModels:
    """The parts of a Stable Diffusion, unedited; they are read and never changed.

    Text features alone (mode "text" with the pooled metric) need the first two, the noise loss also the U-Net
    and the scheduler, drawn or given pictures also the VAE. Text encoder and losses work in float32; the
    U-Net and the VAE may be in half precision. SDXL has a second text encoder with a tokenizer of its own.
    """

    tokenizer: Tokenizer
    text_encoder: nn.Module
    unet: Any = None
    vae: Any = None
    scheduler: Any = None
    stored_dtype: torch.dtype | None = None
    """The type of the checkpoint's text weights on disk, where it is not that of ``text_encoder``."""
    text_encoder_2: nn.Module | None = None
    tokenizer_2: Tokenizer | None = None
    config: Mapping[str, Any] | None = None
    """What the pipeline says of itself; SDXL's ``force_zeros_for_empty_prompt`` is read."""

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The text encoders in the order in which the U-Net reads them, side by side."""
        second = self.text_encoder_2
        first = Tower(
            component="text_encoder",
            encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            penultimate=second is not None,
        )
        if second is None:
            return (first,)
        tokenizer = self.tokenizer if self.tokenizer_2 is None else self.tokenizer_2
        return first, Tower(component="text_encoder_2", encoder=second, tokenizer=tokenizer, penultimate=True)

    def added(self, pooled: Tensor | None, latents: Tensor) -> dict[str, Tensor] | None:
        """What SDXL's U-Net reads beside the token features of pictures of these latents' size."""
        if pooled is None:
            return None
        factor = 8 if self.vae is None else scale_factor(self.vae)
        return size_conditions(pooled, latents.shape[-2] * factor, latents.shape[-1] * factor)


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
    if models.text_encoder_2 is not None:
        digests["text_encoder_2"] = weights_digest(models.text_encoder_2)
        digests["padding_2"] = models.towers[1].tokenizer.pad_token_id
    digests["device"] = next(models.text_encoder.parameters()).device.type
    digests["threads"] = torch.get_num_threads()
    return digests
