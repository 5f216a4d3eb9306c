"""Masks tried on other noise, beside random ones; and what made-up words measure."""

from dataclasses import replace
from typing import Final

import torch

from surgery.diffusion import Models, derived_seed
from surgery.methods.cad.control import RANDOM_MASKS, Control, control
from surgery.methods.cad.gradients import measure
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.pairs import sampler_rows
from surgery.methods.cad.settings import AttributionSettings
from surgery.methods.cad.stored import Shelf

PATHS: Final = 2
"""Paths (or pictures) that a mask is tried on."""
MADE_UP: Final = ("xqzvw", "flibbertigibbet")
"""Words that no checkpoint knows: what a concept's measure is held against."""


def trial_scheme(attribution: AttributionSettings) -> AttributionSettings:
    """A few whole paths, matched, with the sampler's own timesteps."""
    usual = attribution.staggered or attribution.objective == "denoise"
    return replace(
        attribution,
        trajectories=PATHS,
        pictures=PATHS,
        restart=False,
        staggered=False,
        pairing="matched",
        sampling_steps=20 if attribution.staggered else min(20, attribution.sampling_steps),
        graded_steps=10 if usual else min(10, attribution.graded_steps),
    )


def trial_rows(attribution: AttributionSettings, concepts: int, *, drawn: bool = True) -> int:
    """Rows of the U-Net that the trials of so many concepts take, made-up words included."""
    scheme = trial_scheme(attribution)
    paths = sampler_rows(scheme) if drawn else 0
    made_up = paths + scheme.pairs if attribution.objective == "base_gap" else 0
    return concepts * (paths + (2 + RANDOM_MASKS) * scheme.pairs) + made_up


class Trial:
    """Tries masks of one call; measures of made-up words are taken once for each set of prompts."""

    def __init__(
        self, models: Models, attribution: AttributionSettings, micro_batch: int, shelf: Shelf
    ) -> None:
        self._models, self._shelf = models, shelf
        self._scheme, self._micro_batch = trial_scheme(attribution), 2 * micro_batch
        self._made_up: dict[tuple[str, ...], float] = {}

    def control(self, concept: CadConcept, mask: ComponentMask, strength: float) -> Control:
        """The mask beside random ones, on noise that it was not made from; own pictures are the last two."""
        own = replace(concept, images=concept.images[-PATHS:])
        pairs = self._shelf.pairs(own, self._scheme, "control")
        generator = torch.Generator().manual_seed(derived_seed(concept.seed, "random masks"))
        return control(self._models, pairs, mask, strength, generator, micro_batch=self._micro_batch)

    def made_up(self, concept: CadConcept) -> float | None:
        """The measure with made-up words in the concept's place.

        None of ``denoise``, whose measure knows no base, and where no prompt says the concept's name.
        """
        named = [prompt for prompt in concept.prompts if concept.name in prompt]
        if self._scheme.objective == "denoise" or not named:
            return None
        prompts = tuple(
            named[number % len(named)].replace(concept.name, word) for number, word in enumerate(MADE_UP)
        )
        if prompts not in self._made_up:
            nothing = CadConcept(name="made-up words", prompts=prompts, seed=0)
            pairs = self._shelf.pairs(nothing, self._scheme, "control")
            self._made_up[prompts] = measure(self._models, pairs, {}, self._micro_batch).mean
        return self._made_up[prompts]
