"""Points of the paths that the weights as they are draw, and what the untouched weights predict there."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.checkpoint.components import ddim_like
from surgery.diffusion import (
    Models,
    PassingGuide,
    PromptGuide,
    Reading,
    derived_seed,
    device_and_dtype,
    generator_for,
    predict_under,
    sample_latents,
    together,
)
from surgery.methods.distill.settings import DistillConcept, DistillSettings
from surgery.progress import silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Noisy latents and what is to be predicted there.

    Attributes:
        noisy: x_t.
        timesteps: t.
        prompt: Row of the concepts' prompts that each belongs to.
        other: Row of the phrases to preserve that each is looked at with; -1 without any.
        target: With the concept's prompt: e₀ + ω_t (e_c - e₀).
        without: Without words: e₀.
        preserved: With the phrase to preserve: e_d.
    """

    noisy: Float[Tensor, "points channels height width"]
    timesteps: Int64[Tensor, " points"]
    prompt: Int64[Tensor, " points"]
    other: Int64[Tensor, " points"]
    target: Float[Tensor, "points channels height width"]
    without: Float[Tensor, "points channels height width"]
    preserved: Float[Tensor, "points channels height width"]

    def __len__(self) -> int:
        return len(self.timesteps)

    def select(self, rows: Tensor) -> "Points":
        """Some of them."""
        return Points(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a store."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is read: the concepts' prompts side by side, the empty one, and phrases to preserve."""

    prompts: tuple[str, ...]
    concept: tuple[int, ...]
    concepts: Reading
    null: Reading
    preserve: Reading | None


def drawn_points(
    models: Models,
    concepts: Sequence[DistillConcept],
    texts: Texts,
    settings: DistillSettings,
    absent: Callable[[], AbstractContextManager[None]],
    number: int,
) -> Points:
    """Points of new paths, prompts in turn, with the untouched weights' predictions as targets.

    Args:
        models: With the weights as they are by now.
        concepts: Whose prompts.
        texts: As they are read.
        settings: Scheme.
        absent: Makes a block inside which the weights are untouched.
        number: Of the draw; enters all seeds.
    """
    count = settings.paths
    rows = [(number * count + path) % len(texts.prompts) for path in range(count)]
    asked = [texts.prompts[row] for row in rows]
    seeds = [
        derived_seed(concepts[texts.concept[row]].seed, "distilled path", number, path)
        for path, row in enumerate(rows)
    ]
    generator = generator_for(settings.seed, "graded", number)
    # one step in each of equal parts, so that every part of the way is looked at
    parts = settings.sampling_steps / settings.graded_steps
    steps = [
        int((part + float(torch.rand((), generator=generator))) * parts)
        for part in range(settings.graded_steps)
    ]
    guide = PassingGuide(PromptGuide(models, asked, settings.guidance), steps)
    with silence():
        sample_latents(
            models,
            asked,
            seeds,
            steps=settings.sampling_steps,
            batch=count,
            guide=guide,
            scheduler=ddim_like(models.scheduler),
            halve=False,
        )
    noisy, timesteps = torch.cat(guide.noisy), torch.cat(guide.timesteps)
    prompt = torch.tensor(rows).repeat(len(guide.noisy))
    many = 0 if texts.preserve is None else len(texts.preserve.features)
    other = (
        torch.randint(0, max(1, many), (len(noisy),), generator=generator)
        if many
        else torch.full_like(prompt, -1)
    )
    with absent():
        target, without, preserved = _targets(
            models, concepts, texts, settings, noisy, timesteps, prompt, other
        )
    return Points(
        noisy=noisy,
        timesteps=timesteps,
        prompt=prompt,
        other=other,
        target=target,
        without=without,
        preserved=preserved,
    )


@torch.no_grad()
def _targets(
    models: Models,
    concepts: Sequence[DistillConcept],
    texts: Texts,
    settings: DistillSettings,
    noisy: Tensor,
    timesteps: Tensor,
    prompt: Tensor,
    other: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    scales = torch.tensor([concepts[texts.concept[int(row)]].scale for row in prompt])
    most = int(getattr(models.scheduler.config, "num_train_timesteps", 1000))
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(noisy), settings.batch):
        part = slice(start, start + settings.batch)
        without, concept, *preserved = predicted(
            models, texts, noisy[part], timesteps[part], prompt[part], other[part]
        )
        target = scaled_target(without, concept, scales[part], timesteps[part] / most, settings.decay)
        found.append((target, without, preserved[0] if preserved else torch.zeros_like(without)))
    target, without, kept = (torch.cat(column) for column in zip(*found, strict=True))
    return target, without, kept


def scaled_target(
    without: Float[Tensor, "points ..."],
    concept: Float[Tensor, "points ..."],
    scales: Float[Tensor, " points"],
    shares: Float[Tensor, " points"],
    decay: float,
) -> Float[Tensor, "points ..."]:
    """e₀ + ω_t (e_c - e₀) with ω_t = 1 + (ω - 1) (t/T)^γ."""
    fall = shares**decay if decay else torch.ones_like(shares)
    scale = 1 + (scales - 1) * fall
    return without + scale.view(-1, *[1] * (without.ndim - 1)) * (concept - without)


def predicted(
    models: Models,
    texts: Texts,
    noisy: Tensor,
    timesteps: Tensor,
    prompt: Tensor,
    other: Tensor,
    *,
    wordless: bool = True,
) -> tuple[Tensor, ...]:
    """Without words where asked, with the concept's prompt, and with the phrase to preserve if any."""
    device, dtype = device_and_dtype(models.unet)
    given = noisy.to(device, dtype)
    readings = [texts.null.repeated(len(given))] if wordless else []
    readings.append(texts.concepts.select(prompt))
    if texts.preserve is not None:
        readings.append(texts.preserve.select(other))
    text = together([one.to(given) for one in readings])
    many = len(readings)
    found = predict_under(models, torch.cat([given] * many), timesteps.to(device).repeat(many), text)
    return tuple(part.float().cpu() if not part.requires_grad else part.float() for part in found.chunk(many))
