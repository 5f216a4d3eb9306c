"""The pictures behind the noise loss, as latents: drawn by the checkpoint, given as files, or none at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.anatomy import fill
from surgery.diffusion import decode, derived_seed, encode, generator_for, load_picture, sample_latents
from surgery.diffusion.pixels import scale_factor
from surgery.diffusion.sampling import latent_shape
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.settings import Images, OffsetSettings
from surgery.methods.emcid.views import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """x₀ of each row as the U-Net sees it: mean and deviation of the VAE's posterior (0 where exact)."""

    mean: Float[Tensor, "rows channels height width"]
    deviation: Float[Tensor, "rows channels height width"]


def images_of(view: View, settings: OffsetSettings) -> Images:
    """Where a view's picture comes from: an edit's own pictures win over the settings."""
    return "given" if view.concept.edit.images else settings.images


@torch.no_grad()
def clean_latents(models: EmcidModels, views: Sequence[View], settings: OffsetSettings) -> Clean:
    """The latents of each view's picture.

    Raises:
        ConceptError: when a picture file cannot be read.
    """
    mean = torch.zeros(len(views), *latent_shape(cast(Any, models)))
    deviation = torch.zeros_like(mean)
    drawn = [row for row, view in enumerate(views) if images_of(view, settings) in {"source", "destination"}]
    given = [row for row, view in enumerate(views) if images_of(view, settings) == "given"]
    if drawn:
        mean[drawn], deviation[drawn] = _drawn(models, [views[row] for row in drawn], settings)
    if given:
        pixels = torch.stack([_given(models, views[row]) for row in given])
        chosen = [views[row] for row in given]
        mean[given], deviation[given] = encode(models.vae, _mirrored(pixels, chosen, settings))
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
    return encode(models.vae, _mirrored(pixels, views, settings))


def _prompt(view: View, settings: OffsetSettings) -> str:
    edit = view.concept.edit
    phrase = edit.source if settings.images == "source" else edit.destination or ""
    return fill(edit.templates[view.template], phrase)


def _given(models: EmcidModels, view: View) -> Tensor:
    paths = view.concept.edit.images
    _, height, width = latent_shape(cast(Any, models))
    factor = scale_factor(models.vae)
    return load_picture(paths[view.number % len(paths)], height * factor, width * factor)


def _mirrored(pictures: Tensor, views: Sequence[View], settings: OffsetSettings) -> Tensor:
    if not settings.flip:
        return pictures
    drawn = [
        torch.rand((), generator=generator_for(view.concept.edit.seed, "flip", view.number)) < 0.5
        for view in views
    ]
    return torch.where(torch.stack(drawn)[:, None, None, None], pictures.flip(-1), pictures)
