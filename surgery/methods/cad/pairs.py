"""Noisy pictures of a concept: points of the sampler's paths, or pictures with noise added."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoint.components import ddim_like
from surgery.diffusion import (
    Models,
    derived_seed,
    encode,
    generator_for,
    load_picture,
    noise_schedule,
    sample_latents,
)
from surgery.diffusion.pixels import scale_factor
from surgery.diffusion.sampling import latent_shape
from surgery.methods.cad.nouns import CadConcept, Pairs
from surgery.methods.cad.paths import Keep, made_now, walked
from surgery.methods.cad.settings import AttributionSettings

Latents: TypeAlias = tuple[
    Float[Tensor, "pictures channels height width"], Float[Tensor, "pictures channels height width"]
]
"""Mean and deviation of the latents of each picture."""

BATCH: Final = 8
"""Paths at a time, unless told otherwise; the U-Net sees twice as many."""


def pairs_of(
    models: Models,
    concepts: Sequence[CadConcept],
    settings: AttributionSettings,
    *,
    purpose: str = "attribution",
    batch: int = BATCH,
    keep: Keep = made_now,
) -> list[Pairs]:
    """The pairs of each concept; the paths of all share the sampler's batches.

    Args:
        models: The unedited checkpoint.
        concepts: Whose pairs.
        settings: Objective and scheme.
        purpose: Enters every seed: other purposes give other noise.
        batch: Paths or pictures at a time.
        keep: Where what each batch draws is kept, under a name, so that a stopped run goes on behind it.

    Source: 2412.02542, sections 1.2 to 1.5 of the study.
    """
    if settings.objective == "denoise":
        pictures = partial(_pictures, models, settings=settings, purpose=purpose, batch=batch, keep=keep)
        return [_noised(models, concept, settings, purpose, pictures(concept)) for concept in concepts]
    return walked(models, concepts, settings, purpose=purpose, batch=batch, keep=keep)


@torch.no_grad()
def _noised(
    models: Models,
    concept: CadConcept,
    settings: AttributionSettings,
    purpose: str,
    latents_of: Latents,
) -> Pairs:
    """Pictures of a concept, each with noise of several sizes; timesteps are spread over all pairs."""
    clean, deviation = latents_of
    each, count = settings.graded_steps, len(clean)
    schedule = noise_schedule(models.scheduler)
    generator = generator_for(concept.seed, purpose, "noise")
    timesteps = _timesteps(models, settings, count, each, len(schedule.remaining), generator)
    jitter, noise = (torch.randn((count * each, *clean.shape[1:]), generator=generator) for _ in range(2))
    pictures = torch.arange(count).repeat_interleave(each)
    latents = clean[pictures] + deviation[pictures] * jitter
    return Pairs(
        noisy=schedule.noisy(latents, noise, timesteps),
        timesteps=timesteps,
        target=schedule.truth(latents, noise, timesteps),
        prompt=pictures % len(concept.prompts),
        sample=pictures,
        prompts=concept.prompts,
        towards=-1,
    )


def _timesteps(
    models: Models,
    settings: AttributionSettings,
    count: int,
    each: int,
    most: int,
    generator: torch.Generator,
) -> Tensor:
    """One in each of ``each`` equal parts for every picture, or as published all of the sampler's."""
    if not settings.staggered and each == settings.sampling_steps:
        solver = ddim_like(models.scheduler)
        solver.set_timesteps(each)
        return torch.as_tensor(solver.timesteps).long().cpu().repeat(count)
    # one in each of count · each parts, dealt so that every picture has one of each coarse part
    fine = torch.stack([torch.randperm(count, generator=generator) for _ in range(each)], 1)
    inside = torch.rand((count, each), generator=generator)
    places = (torch.arange(each) + (fine + inside) / count) / each
    return (places * most).long().clamp(max=most - 1).flatten()


@torch.no_grad()
def _pictures(
    models: Models,
    concept: CadConcept,
    *,
    settings: AttributionSettings,
    purpose: str,
    batch: int,
    keep: Keep,
) -> Latents:
    """Mean and deviation of the latents of each picture: own ones, or drawn by the checkpoint."""
    if concept.images:
        _, height, width = latent_shape(models)
        factor = scale_factor(models.vae)
        pixels = [load_picture(path, height * factor, width * factor) for path in concept.images]
        return encode(models.vae, torch.stack(pixels))

    def drawn(numbers: Sequence[int]) -> Mapping[str, Tensor]:
        latents = sample_latents(
            models,
            [concept.prompts[number % len(concept.prompts)] for number in numbers],
            [derived_seed(concept.seed, purpose, "picture", number) for number in numbers],
            steps=settings.sampling_steps,
            guidance=settings.guidance,
            batch=batch,
        )
        return {"latents": latents.float().cpu()}

    parts = [range(settings.pictures)[start : start + batch] for start in range(0, settings.pictures, batch)]
    kept = [keep(f"{concept.name} {part[0]}-{part[-1]}", partial(drawn, part)) for part in parts]
    latents = torch.cat([one["latents"] for one in kept])
    return latents, torch.zeros_like(latents)
