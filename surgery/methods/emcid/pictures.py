"""The pictures behind the noise loss, as latents: drawn by the checkpoint, given as files, or none at all."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from surgery.anatomy import fill
from surgery.diffusion import decode, device_and_dtype, resident, sample_latents
from surgery.errors import ConceptError
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.settings import Images, OffsetSettings
from surgery.methods.emcid.views import View

_AT_A_TIME = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """x₀ of each row as the U-Net sees it: mean and deviation of the VAE's posterior (0 where exact)."""

    mean: Float[Tensor, "rows channels height width"]
    deviation: Float[Tensor, "rows channels height width"]


def images_of(view: View, settings: OffsetSettings) -> Images:
    """Where a view's picture comes from: an edit's own pictures win over the settings."""
    return "given" if view.concept.edit.images else settings.images


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator of its own for each purpose, so that no draw depends on what else is drawn."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed below 2⁶³ from a seed and a purpose."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@torch.no_grad()
def clean_latents(models: EmcidModels, views: Sequence[View], settings: OffsetSettings) -> Clean:
    """The latents of each view's picture.

    Raises:
        ConceptError: when a picture file cannot be read.
    """
    config = models.unet.config
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    mean = torch.zeros(len(views), config.in_channels, height, width)
    deviation = torch.zeros_like(mean)
    drawn = [row for row, view in enumerate(views) if images_of(view, settings) in {"source", "destination"}]
    given = [row for row, view in enumerate(views) if images_of(view, settings) == "given"]
    if drawn:
        mean[drawn], deviation[drawn] = _drawn(models, [views[row] for row in drawn], settings)
    if given:
        pixels = torch.stack([_given(models, views[row]) for row in given])
        chosen = [views[row] for row in given]
        mean[given], deviation[given] = _encoded(models, _mirrored(pixels, chosen, settings))
    return Clean(mean=mean, deviation=deviation)


def _drawn(models: EmcidModels, views: list[View], settings: OffsetSettings) -> tuple[Tensor, Tensor]:
    latents = sample_latents(
        cast(Any, models),  # the door has checked that all five parts are there
        [_prompt(view, settings) for view in views],
        [derived_seed(view.concept.edit.seed, "picture", view.number) for view in views],
        steps=settings.sampling_steps,
        guidance=settings.guidance,
        halve=False,  # the concepts' own batch is halved, and stored under its own key
    )
    if settings.latents == "sampler":
        mirrored = _mirrored(latents.float().cpu(), views, settings)
        return mirrored, torch.zeros_like(mirrored)
    pixels = (
        torch.from_numpy(decode(models.vae, latents, halve=False)).permute(0, 3, 1, 2).float() / 127.5 - 1
    )
    return _encoded(models, _mirrored(pixels, views, settings))


def _prompt(view: View, settings: OffsetSettings) -> str:
    edit = view.concept.edit
    phrase = edit.source if settings.images == "source" else edit.destination or ""
    return fill(edit.templates[view.template], phrase)


def _given(models: EmcidModels, view: View) -> Tensor:
    paths = view.concept.edit.images
    config, side = models.vae.config, models.unet.config.sample_size
    factor = 2 ** (len(config.block_out_channels) - 1)
    height, width = (side, side) if isinstance(side, int) else side
    return load_picture(paths[view.number % len(paths)], height * factor, width * factor)


def load_picture(path: Path, height: int, width: int) -> Float[Tensor, "3 height width"]:
    """A picture file in [-1, 1]: turned upright, its shorter side resized, its centre cut out.

    Raises:
        ConceptError: when the file is no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ConceptError(
            f"{str(path)!r} cannot be read as a picture ({error}); expected PNG, JPEG or another format that "
            "Pillow reads."
        ) from error
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _mirrored(pictures: Tensor, views: Sequence[View], settings: OffsetSettings) -> Tensor:
    if not settings.flip:
        return pictures
    drawn = [
        torch.rand((), generator=generator_for(view.concept.edit.seed, "flip", view.number)) < 0.5
        for view in views
    ]
    return torch.where(torch.stack(drawn)[:, None, None, None], pictures.flip(-1), pictures)


def _encoded(models: EmcidModels, pixels: Tensor) -> tuple[Tensor, Tensor]:
    device, dtype = device_and_dtype(models.vae)
    scaling = float(models.vae.config.scaling_factor)
    means, deviations = [], []
    with resident(models.vae):
        for part in torch.split(pixels, _AT_A_TIME):
            posterior = models.vae.encode(part.to(device, dtype)).latent_dist
            means.append(posterior.mean.float().cpu() * scaling)
            deviations.append(posterior.std.float().cpu() * scaling)
    return torch.cat(means), torch.cat(deviations)
