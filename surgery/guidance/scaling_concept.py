"""ScalingConcept: more or less of what a picture shows already, along its inverted path.

Source: arXiv 2410.24151; section 3 of the study.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Final

from jaxtyping import Float
from torch import Tensor

from surgery.diffusion.algebra import guided


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
