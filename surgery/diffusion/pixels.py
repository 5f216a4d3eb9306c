"""Latents to pixels and back, in batches."""

import copy
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from surgery.diffusion.batches import in_batches
from surgery.diffusion.models import config_of
from surgery.diffusion.offload import device_and_dtype, resident

_AT_A_TIME: Final = 8  # pictures that are encoded


@torch.no_grad()
def decode(
    vae: nn.Module,
    latents: Float[Tensor, "pictures channels height width"],
    batch: int = 16,
    *,
    halve: bool = True,
) -> UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]:
    """The pictures of scaled latents (as the U-Net sees them), values 0 to 255.

    Source: ``VaeImageProcessor.postprocess`` of diffusers 0.42, with the same order of roundings.
    """
    vae, device, dtype = _upcast(vae)

    def work(part: slice) -> np.ndarray[Any, Any]:
        scaled = latents[part].to(device, dtype) / config_of(vae).scaling_factor
        pixels = vae.decode(scaled, return_dict=False)[0]  # type: ignore[operator]
        shares = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return np.asarray((shares * 255).round().astype("uint8"))

    with resident(vae):
        return np.concatenate(in_batches(len(latents), batch, work, halve=halve))


@torch.no_grad()
def encode(
    vae: Any, pixels: Float[Tensor, "pictures 3 rows columns"]
) -> tuple[Float[Tensor, "pictures channels height width"], Float[Tensor, "pictures channels height width"]]:
    """Mean and deviation of the posterior of pictures in [-1, 1], scaled as the U-Net sees latents."""
    vae, device, dtype = _upcast(vae)
    scaling = float(config_of(vae).scaling_factor)
    means, deviations = [], []
    with resident(vae):
        for part in torch.split(pixels, _AT_A_TIME):
            posterior = vae.encode(part.to(device, dtype)).latent_dist
            means.append(posterior.mean.float().cpu() * scaling)
            deviations.append(posterior.std.float().cpu() * scaling)
    return torch.cat(means), torch.cat(deviations)


def _upcast(vae: Any) -> tuple[Any, torch.device, torch.dtype]:
    """The VAE in float32 where it overflows in half precision, as SDXL's; else as it is."""
    device, dtype = device_and_dtype(vae)
    if dtype == torch.float16 and getattr(config_of(vae), "force_upcast", False):
        # a copy of its own, since the caller's stays as it is
        return copy.deepcopy(vae).to(device, torch.float32), device, torch.float32
    return vae, device, dtype


def scale_factor(vae: nn.Module) -> int:
    """Pixels per latent along one side: 8 for Stable Diffusion, 4 for a VAE of three levels."""
    return int(2 ** (len(config_of(vae).block_out_channels) - 1))
