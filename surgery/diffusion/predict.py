"""One noise prediction, plain or with classifier-free guidance."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.diffusion.conditions import Reading
from surgery.diffusion.control import Control
from surgery.diffusion.models import Models
from surgery.diffusion.pixels import scale_factor


def predict_noise(
    unet: nn.Module,
    latents: Float[Tensor, "pictures channels height width"],
    timestep: Any,
    text: Float[Tensor, "pictures tokens width"],
    added: Mapping[str, Tensor] | None = None,
    control: Control | None = None,
) -> Float[Tensor, "pictures channels height width"]:
    """The U-Net's output for noisy latents: the noise, or the velocity where the checkpoint predicts that.

    Gradients flow through when the caller asks for them. ``added`` are SDXL's further conditions
    (``size_conditions``); ``control`` is a ControlNet and its picture.
    """
    more: dict[str, Any] = {} if added is None else {"added_cond_kwargs": dict(added)}
    if control is not None:
        more |= control.residuals(latents, timestep, text, added)
    noise: Tensor = unet(latents, timestep, encoder_hidden_states=text, return_dict=False, **more)[0]
    return noise


def predict_under(
    models: Models,
    latents: Float[Tensor, "pictures channels height width"],
    timestep: Any,
    text: Reading,
    control: Control | None = None,
) -> Float[Tensor, "pictures channels height width"]:
    """The same for prompts as the models read them, a reading for each of the latents."""
    height, width = (side * scale_factor(models.vae) for side in latents.shape[2:])
    return predict_noise(models.unet, latents, timestep, text.features, text.added(height, width), control)


def guided_noise(
    unet: nn.Module,
    latents: Float[Tensor, "pictures channels height width"],
    timestep: Any,
    text: Float[Tensor, "pictures tokens width"],
    unconditional: Float[Tensor, "pictures tokens width"],
    guidance: float,
    added: Mapping[str, Tensor] | None = None,
    unconditional_added: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "pictures channels height width"]:
    """The prediction moved away from the unconditional one; both come from one pass of twice the batch.

    Source: Ho and Salimans 2022, eq. 6 in the form of Stable Diffusion, u + guidance · (c - u): guidance 1
    is the plain conditional prediction.
    """
    joined = None
    if added is not None and unconditional_added is not None:
        joined = {name: torch.cat([unconditional_added[name], value]) for name, value in added.items()}
    doubled = torch.cat([latents, latents])
    both = predict_noise(unet, doubled, timestep, torch.cat([unconditional, text]), joined)
    without, conditional = both.chunk(2)
    return without + guidance * (conditional - without)
