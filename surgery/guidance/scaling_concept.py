"""ScalingConcept: more or less of what a picture shows already, along its inverted path.

Source: arXiv 2410.24151; section 3 of the study.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from surgery import progress
from surgery.checkpoint.components import ddim_like
from surgery.diffusion import Models, decode, encode, noise_schedule, read_prompts, resident, sampler_faults
from surgery.diffusion.algebra import guided
from surgery.diffusion.inversion import InversionSettings, Rung, cleaner, inverted, rungs_of
from surgery.errors import MethodError, raise_all
from surgery.guidance.branches import Branch, BranchExecutor

Latents: TypeAlias = Float[Tensor, "pictures channels height width"]
Both: TypeAlias = Callable[[Latents, Latents, Rung], tuple[Latents, Latents]]
"""The noise without the concept in some latents, and with it in others, at a step."""
Alone: TypeAlias = Callable[[Latents, Rung], Latents]
"""The noise with the concept in some latents, at a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSettings:
    """How strongly the concept is scaled, and how long the inverted path is held on to.

    Attributes:
        scale: ω. 0 draws without the concept, 1 (``anchored``) draws the picture again, more enhances it.
        decay: γ. The scale falls with this power of the rest of the path; 0 keeps it.
        exit_step: Steps from the noisy end in which the concept is read off the mean of the latents and the
            inverted ones.
        anchored: Whether the scale falls towards 1, which draws the picture as it is, and not towards 0,
            which is what was published.
    """

    scale: float = 5.0
    decay: float = 3.0
    exit_step: int = 15
    anchored: bool = False


OBJECT: Final = ScalingSettings()
"""Canonical pose, stitching, weather, as published for 50 steps."""
SUBTLE: Final = ScalingSettings(scale=3.0)
"""Creative enhancement and faces, as published."""
SKETCH: Final = ScalingSettings(exit_step=25)
"""Anime, as published."""


def check_scaling(settings: ScalingSettings) -> None:
    """Refuse settings that cannot be carried out.

    Raises:
        MethodError: all faults at once.
    """
    faults = []
    if not isfinite(settings.scale):
        faults.append(f"scale is {settings.scale}; expected a finite number.")
    if not (isfinite(settings.decay) and settings.decay >= 0):
        faults.append(f"decay is {settings.decay}; expected 0 (constant) or more.")
    if settings.exit_step < 0:
        faults.append(f"exit_step is {settings.exit_step}; expected 0 or more.")
    raise_all(MethodError, faults)


def scale_schedule(settings: ScalingSettings, steps: int) -> tuple[float, ...]:
    """ωᵢ of every step, from noise to picture: ω (1 - i/(N-1))^γ, or 1 + (ω - 1) (1 - i/(N-1))^γ."""
    rest = [1 - step / max(1, steps - 1) for step in range(steps)]
    fall = [share**settings.decay if settings.decay else 1.0 for share in rest]
    if settings.anchored:
        return tuple(1 + (settings.scale - 1) * share for share in fall)
    return tuple(settings.scale * share for share in fall)


def mixed(
    latents: Float[Tensor, "pictures ..."], path: Float[Tensor, "pictures ..."], step: int, exit_step: int
) -> Float[Tensor, "pictures ..."]:
    """What the concept is read off: halfway to the inverted path, until the exit."""
    return (latents + path) / 2 if step < exit_step else latents


def scaled(
    base: Float[Tensor, "pictures ..."], concept: Float[Tensor, "pictures ..."], scale: float
) -> Float[Tensor, "pictures ..."]:
    """e₀ + ωᵢ (e_c - e₀), two evaluations a step; noise, not velocity, where latents were mixed."""
    return guided(base, [(scale, concept)])


def noise_of(
    velocity: Float[Tensor, "pictures ..."], latents: Float[Tensor, "pictures ..."], remaining: float
) -> Float[Tensor, "pictures ..."]:
    """The noise that a predicted velocity means at latents with the share ᾱ of the picture left."""
    return sqrt(remaining) * velocity + sqrt(1 - remaining) * latents


def velocity_of(
    noise: Float[Tensor, "pictures ..."], latents: Float[Tensor, "pictures ..."], remaining: float
) -> Float[Tensor, "pictures ..."]:
    """The way back: the velocity that a noise means."""
    return (noise - sqrt(1 - remaining) * latents) / sqrt(remaining)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Pictures with more or less of a concept.

    Attributes:
        pictures: For each of the settings, values 0 to 255.
        again: The same pictures drawn from their own noise with the concept as it is.
        error: How far the latents of ``again`` are from the pictures' own, as a share of their length.
    """

    pictures: tuple[UInt8[np.ndarray[Any, Any], "pictures rows columns 3"], ...]
    again: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]
    error: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inverted:
    """Pictures followed back to the noise that a concept's prompt draws them from.

    Attributes:
        prompt: The concept's word.
        path: Latents at every level, from noise (first) to the pictures' own.
        rungs: Steps of the sampler.
        again: Latents drawn from that noise with the concept as it is.
        error: How far those are from the pictures' own, as a share of their length.
    """

    prompt: str
    path: tuple[Latents, ...]
    rungs: tuple[Rung, ...]
    again: Latents
    error: tuple[float, ...]


def invert_pictures(
    models: Models,
    pixels: Float[Tensor, "pictures 3 rows columns"],
    prompt: str,
    inversion: InversionSettings | None = None,
    *,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> Inverted:
    """Each picture's path back, and the picture drawn again from its end.

    Args:
        models: A pipeline.
        pixels: Pictures from -1 to 1, of the size the checkpoint was trained on.
        prompt: The concept's word.
        inversion: How exactly paths are followed back; the published way when left out.
        steps: In each direction.
        generator: Of the noise of references, where predictions are regularised.

    Raises:
        MethodError: when the models cannot be sampled with so many steps.
    """
    raise_all(MethodError, sampler_faults(models, steps))
    rungs = steps_of(models.scheduler, steps)
    clean = encode(models.vae, pixels)[0]
    if not bool(torch.isfinite(clean).all()):
        raise MethodError("the VAE's latents of the pictures are NaN or infinite; expected finite ones.")
    with resident(models.unet):
        _, alone = _predictors(models, prompt, clean)
        return followed_back(alone, prompt, clean, rungs, inversion, generator)


@torch.no_grad()
def followed_back(
    alone: Alone,
    prompt: str,
    clean: Latents,
    rungs: tuple[Rung, ...],
    inversion: InversionSettings | None = None,
    generator: torch.Generator | None = None,
) -> Inverted:
    """The paths of latents back to their noise, and the latents drawn again from there."""
    by_timestep = {rung.timestep: rung for rung in rungs}
    path = inverted(
        lambda latents, timestep: alone(latents, by_timestep[timestep]),
        clean,
        rungs,
        inversion or InversionSettings(),
        generator,
    )
    again = path[0]
    for rung in progress.track(rungs, "drawing again", unit="step"):
        again = cleaner(again, alone(again, rung), rung)
    error = (again - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    return Inverted(prompt=prompt, path=tuple(path), rungs=rungs, again=again, error=tuple(error.tolist()))


def steps_of(scheduler: Any, steps: int) -> tuple[Rung, ...]:
    """DDIM's steps in a scheduler's noise levels, from noise to picture.

    Raises:
        MethodError: when there are more than the scheduler has, or the first starts from pure noise.
    """
    most = getattr(scheduler.config, "num_train_timesteps", steps)
    if not 1 <= steps <= most:
        raise MethodError(f"steps is {steps}; expected 1 to {most}.")
    solver = ddim_like(scheduler)
    solver.set_timesteps(steps)
    rungs = rungs_of(solver)
    if rungs[0].noisy <= 0:
        raise MethodError(
            "the sampler's first step starts from pure noise, from which no picture can be told; expected a "
            "schedule that leaves some of it. Set the scheduler's timestep_spacing to 'leading'."
        )
    return rungs


def draw_scaled(
    models: Models, found: Inverted, settings: ScalingSettings
) -> UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]:
    """Inverted pictures drawn with the concept at another scale, two evaluations a step.

    The models may be others than those that the paths were followed with.

    Raises:
        MethodError: when settings cannot be carried out, or the result is not finite.
    """
    check_scaling(settings)
    with resident(models.unet):
        both, _ = _predictors(models, found.prompt, found.path[-1])
        latents = followed(both, found.path, found.rungs, settings)
    if not bool(torch.isfinite(latents).all()):
        raise MethodError(
            f"with scale {settings.scale:g} the latents became NaN or infinite; expected finite ones. Take a "
            "smaller scale, or more passes of the inversion."
        )
    return decode(models.vae, latents)


def scale_concept(
    models: Models,
    pixels: Float[Tensor, "pictures 3 rows columns"],
    prompt: str,
    settings: Sequence[ScalingSettings] = (OBJECT,),
    inversion: InversionSettings | None = None,
    *,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> Scaled:
    """Real pictures with a concept enhanced, weakened or removed, in each of some ways.

    Arguments and errors are those of ``invert_pictures`` and ``draw_scaled``; pictures are inverted once.
    """
    for one in settings:
        check_scaling(one)
    found = invert_pictures(models, pixels, prompt, inversion, steps=steps, generator=generator)
    return Scaled(
        pictures=tuple(draw_scaled(models, found, one) for one in settings),
        again=decode(models.vae, found.again),
        error=found.error,
    )


@torch.no_grad()
def followed(
    both: Both, path: Sequence[Latents], rungs: Sequence[Rung], settings: ScalingSettings
) -> Latents:
    """The sampler from the inverted noise on, with the concept at the scale of each step.

    Source: (C2) of the study.
    """
    latents, scales = path[0], scale_schedule(settings, len(rungs))
    for step, rung in enumerate(progress.track(rungs, "scaling", unit="step")):
        seen = mixed(latents, path[step], step, settings.exit_step)
        base, concept = both(latents, seen, rung)
        latents = cleaner(latents, scaled(base, concept, scales[step]), rung)
    return latents


def _predictors(models: Models, prompt: str, like: Latents) -> tuple[Both, Alone]:
    """Predictions as noise, each branch's by its own latents: of both branches, and of the concept alone."""
    velocity = noise_schedule(models.scheduler).predicts == "v_prediction"
    # the empty prompt as it is read, also where SDXL would take zeros
    without, text = (read_prompts(models, [one]).to(like).repeated(len(like)) for one in ("", prompt))
    executor = BranchExecutor(models=models)

    def both(latents: Latents, seen: Latents, rung: Rung) -> tuple[Latents, Latents]:
        branches = [Branch(text=without), Branch(text=text, instead=seen)]
        base, concept = executor.predict(latents, rung.timestep, branches)
        if velocity:
            return noise_of(base, latents, rung.noisy), noise_of(concept, seen, rung.noisy)
        return base, concept

    def alone(latents: Latents, rung: Rung) -> Latents:
        (concept,) = executor.predict(latents, rung.timestep, [Branch(text=text)])
        return noise_of(concept, latents, rung.noisy) if velocity else concept

    return both, alone
