"""ScalingConcept for sounds: mel latents in, mel latents out, through a pipeline of AudioLDM2's kind.

Only what needs no weights could be checked: that paths are the library's own, come back, and are scaled. How
well sounds are scaled, and which settings suit them, is not known here.

Source: arXiv 2410.24151; section 3 of the study.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from surgery.diffusion import device_and_dtype, noise_schedule
from surgery.diffusion.inversion import InversionSettings, Rung
from surgery.errors import MethodError
from surgery.guidance.scaling_concept import (
    OBJECT,
    Alone,
    Both,
    ScalingSettings,
    check_scaling,
    followed,
    followed_back,
    steps_of,
)

Sounds: TypeAlias = Float[Tensor, "sounds channels frames bands"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledSound:
    """Sounds with more or less of a concept.

    Attributes:
        latents: For each of the settings.
        again: The same sounds drawn from their own noise with the concept as it is.
        error: How far ``again`` is from the sounds' own latents, as a share of their length.
    """

    latents: tuple[Sounds, ...]
    again: Sounds
    error: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What the U-Net reads of one prompt: T5's features with their mask, and those of the language model."""

    features: Float[Tensor, "1 tokens width"]
    mask: Tensor
    generated: Float[Tensor, "1 tokens width"]


def scale_sound(
    pipeline: Any,
    latents: Sounds,
    prompt: str,
    settings: Sequence[ScalingSettings] = (OBJECT,),
    inversion: InversionSettings | None = None,
    *,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> ScaledSound:
    """Sounds with a concept enhanced, weakened or removed, each followed back once.

    Args:
        pipeline: ``diffusers.AudioLDM2Pipeline``.
        latents: Of mel spectrograms, as its U-Net sees them (``vae.encode(mel)`` times the scaling factor).
        prompt: The concept's word.
        settings: Scale, decay and exit, of each way to draw it.
        inversion: How exactly paths are followed back; the published way when left out.
        steps: In each direction.
        generator: Of the noise of references, where predictions are regularised.

    Raises:
        MethodError: when settings cannot be carried out, the language model cannot generate, or the result is
            not finite.
    """
    for one in settings:
        check_scaling(one)
    rungs = steps_of(pipeline.scheduler, steps)
    if noise_schedule(pipeline.scheduler).predicts != "epsilon":
        raise MethodError("the U-Net predicts velocities; expected one of AudioLDM2, which predicts noise.")
    both, alone = _predictors(pipeline, prompt)
    back = followed_back(alone, prompt, latents, rungs, inversion, generator)
    found = tuple(followed(both, back.path, rungs, one) for one in settings)
    if not all(bool(torch.isfinite(one).all()) for one in found):
        raise MethodError(
            "the latents became NaN or infinite; expected finite ones. Take a smaller scale, or more passes "
            "of the inversion."
        )
    return ScaledSound(latents=found, again=back.again, error=back.error)


def _predictors(pipeline: Any, prompt: str) -> tuple[Both, Alone]:
    """Noise as the U-Net predicts it: of both branches in one pass, and of the concept alone."""
    empty, concept = (_read(pipeline, text) for text in ("", prompt))
    longest = max(empty.features.shape[1], concept.features.shape[1])
    device, dtype = device_and_dtype(pipeline.unet)

    def predicted(noisy: Sounds, timestep: int, readings: Sequence[_Reading]) -> Sounds:
        each = len(noisy) // len(readings)
        features = [pad(one.features, (0, 0, 0, longest - one.features.shape[1])) for one in readings]
        masks = [pad(one.mask, (0, longest - one.mask.shape[1])) for one in readings]
        generated = [one.generated for one in readings]
        found: Sounds = pipeline.unet(
            noisy.to(device, dtype),
            timestep,
            encoder_hidden_states=torch.cat(generated).repeat_interleave(each, 0),
            encoder_hidden_states_1=torch.cat(features).repeat_interleave(each, 0),
            encoder_attention_mask_1=torch.cat(masks).repeat_interleave(each, 0),
            return_dict=False,
        )[0]
        return found.to(noisy)

    def both(noisy: Sounds, seen: Sounds, rung: Rung) -> tuple[Sounds, Sounds]:
        base, own = predicted(torch.cat([noisy, seen]), rung.timestep, [empty, concept]).chunk(2)
        return base, own

    return both, lambda noisy, rung: predicted(noisy, rung.timestep, [concept])


@torch.no_grad()
def _read(pipeline: Any, text: str) -> _Reading:
    language_model = pipeline.language_model
    if not hasattr(language_model, "_update_model_kwargs_for_generation"):
        raise MethodError(
            f"the language model is {type(language_model).__name__}, which the library cannot generate with; "
            "expected GPT2LMHeadModel. Give it a head: pipeline.language_model = "
            "surgery.checkpoint.components.with_head(pipeline.language_model)."
        )
    device, _ = device_and_dtype(pipeline.unet)
    features, mask, generated = pipeline.encode_prompt(text, device, 1, False, transcription=text)
    return _Reading(features=features, mask=mask, generated=generated)
