"""From a picture's latents back to the noise that a deterministic sampler would draw it from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from surgery import progress

Latents: TypeAlias = Float[Tensor, "pictures channels height width"]
Predict: TypeAlias = Callable[[Latents, int], Latents]
"""The noise in latents that are said to be at a timestep."""

_FINE: Final = 250
"""Timesteps below are those at which small errors show; the method averages there."""
_ROUNDS, _ROLLS, _PATCH, _SMALLEST = 4, 5, 4, 8
_TOWARDS_NORMAL, _APART, _STEEPEST = 0.065, 20.0, 100.0
_EPSILON: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of DDIM: its timestep, and the shares ᾱ of the picture before (``noisy``) and after it."""

    timestep: int
    noisy: float
    clean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionSettings:
    """How the fixed point of each step is sought (ReNoise).

    Attributes:
        renoise: Passes after the first at each step; 0 is plain DDIM inversion.
        average: Of which passes the predictions are averaged below timestep 250, from and up to.
        average_above: The same from there on.
        most_below: Passes after the first below timestep 250, at most.
        regularise: Whether averaged predictions are moved towards white noise.
        tolerance: Passes end early where the latents move by a smaller share of their length; 0: never.
    """

    renoise: int = 1
    average: tuple[int, int] = (0, 5)
    average_above: tuple[int, int] = (8, 10)
    most_below: int = 5
    regularise: bool = True
    tolerance: float = 0.0


PLAIN: Final = InversionSettings(renoise=0, average=(0, 0), average_above=(0, 0), regularise=False)
"""DDIM inversion as it is."""


def rungs_of(solver: Any) -> tuple[Rung, ...]:
    """The steps of a DDIM solver whose timesteps are set, from noise to picture."""
    remaining, config = solver.alphas_cumprod.double(), solver.config
    stride = config.num_train_timesteps // solver.num_inference_steps
    timesteps = [int(one) for one in solver.timesteps]
    below = [one - stride for one in timesteps]
    last = float(solver.final_alpha_cumprod)
    return tuple(
        Rung(
            timestep=timestep,
            noisy=float(remaining[timestep]),
            clean=float(remaining[lower]) if lower >= 0 else last,
        )
        for timestep, lower in zip(timesteps, below, strict=True)
    )


def noisier(latents: Latents, noise: Latents, rung: Rung) -> Latents:
    """One step of DDIM backwards, exact for the noise that the step forward would predict.

    Source: Song et al. 2021, eq. 12 solved for the noisier side; (C1) of the study.
    """
    kept = sqrt(rung.noisy / rung.clean)
    added = sqrt(1 - rung.noisy) - kept * sqrt(1 - rung.clean)
    return kept * latents + added * noise


def cleaner(latents: Latents, noise: Latents, rung: Rung) -> Latents:
    """One step of DDIM forwards."""
    kept = sqrt(rung.clean / rung.noisy)
    added = sqrt(1 - rung.clean) - kept * sqrt(1 - rung.noisy)
    return kept * latents + added * noise


@torch.no_grad()
def inverted(
    predict: Predict,
    clean: Latents,
    rungs: Sequence[Rung],
    settings: InversionSettings,
    generator: torch.Generator | None = None,
) -> list[Latents]:
    """The latents at every level, from pure noise (first) to the picture's own (last), one more than steps.

    Args:
        predict: The noise in latents at a timestep, with the prompt that the picture is read by.
        clean: The picture's latents, as the U-Net sees them.
        rungs: Steps of the sampler.
        settings: How exactly the fixed point x_t = noisier(x_s, predict(x_t, t)) is met at each of them.
        generator: Of the noise of references and of rolls, where predictions are regularised.

    Source: Garibi et al. 2024 (ReNoise), algorithm 1; section 3.1 of the study.
    """
    own = generator or torch.Generator().manual_seed(0)
    found = [clean]
    for rung in progress.track(list(reversed(rungs)), "inverting", unit="step"):
        found.append(_climb(predict, found[-1], clean, rung, settings, own))
    return found[::-1]


def _climb(
    predict: Predict,
    below: Latents,
    clean: Latents,
    rung: Rung,
    settings: InversionSettings,
    generator: torch.Generator,
) -> Latents:
    fine = rung.timestep < _FINE
    first, last = settings.average if fine else settings.average_above
    passes = min(settings.renoise, settings.most_below) if fine else settings.renoise
    averaging = last > first and passes >= first
    reference = None
    if settings.regularise and averaging:
        fresh = torch.randn(clean.shape, generator=generator).to(clean)
        noised = sqrt(rung.noisy) * clean + sqrt(1 - rung.noisy) * fresh
        reference = predict(noised, rung.timestep)
    latents, seen = below, []
    for number in range(passes + 1):
        noise = predict(latents, rung.timestep)
        if first <= number < last:
            seen.append(noise)
        if reference is not None and number >= first:
            noise = regularised(noise, reference, generator)
        before, latents = latents, noisier(below, noise, rung)
        if number and float((latents - before).norm() / latents.norm()) < settings.tolerance:
            break
    if not seen:
        return latents
    mean = torch.stack(seen).mean(0)
    return noisier(below, mean if reference is None else regularised(mean, reference, generator), rung)


def regularised(noise: Latents, reference: Latents, generator: torch.Generator) -> Latents:
    """A prediction moved towards white noise: like a reference in each patch, and unlike itself when rolled.

    Source: Parmar et al. 2023 (pix2pix-zero), eq. 2 and 3; Garibi et al. 2024, section 4.2.
    """
    moved = noise.float()
    for _ in range(_ROUNDS):
        slope = _slope(lambda given: _divergence(given, reference.float()), moved)
        moved = moved - _TOWARDS_NORMAL * slope.clamp(-_STEEPEST, _STEEPEST)
        for _ in range(_ROLLS):
            slope = _slope(lambda given: _likeness(given, generator), moved)
            moved = moved - _APART / _ROLLS * slope.clamp(-_STEEPEST, _STEEPEST)
    return moved.to(noise)


def _slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = at.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(leaf), leaf)
    return slope


def _divergence(noise: Latents, reference: Latents) -> Tensor:
    """Of normal distributions with the mean and variance of each channel of each patch, summed."""
    (mean, variance), (other, spread) = (_patches(one) for one in (noise, reference))
    ratio = (variance + _EPSILON) / (spread + _EPSILON)
    return 0.5 * (ratio - ratio.log() - 1 + (mean - other).square() / (spread + _EPSILON)).sum()


def _patches(latents: Latents) -> tuple[Tensor, Tensor]:
    side = [min(_PATCH, size) for size in latents.shape[2:]]
    patches = latents.unfold(2, side[0], side[0]).unfold(3, side[1], side[1]).flatten(4)
    return patches.mean(-1), patches.var(-1)


def _likeness(noise: Latents, generator: torch.Generator) -> Tensor:
    """How like itself each channel is when rolled, at several sizes."""
    total = noise.new_zeros(())
    for channel in noise.split(1, dim=1):
        level = channel
        while True:
            for axis in (2, 3):
                amount = int(torch.randint(0, max(1, level.shape[2] // 2), (), generator=generator))
                rolled = level.roll(amount, dims=axis)
                total = total + (level * rolled).mean((1, 2, 3)).square().sum()
            if min(level.shape[2:]) <= _SMALLEST:
                break
            level = avg_pool2d(level, 2)
    return total
