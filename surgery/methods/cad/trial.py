"""Masks tried on other noise, beside random ones, or grown there until enough is gone; made-up words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from surgery import progress
from surgery.diffusion import Models, derived_seed
from surgery.methods.cad.control import RANDOM_MASKS, Control, HeldOut
from surgery.methods.cad.gradients import measure
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.paths import sampler_rows
from surgery.methods.cad.settings import AttributionSettings
from surgery.methods.cad.stored import Shelf

PATHS: Final = 2
"""Paths (or pictures) that a mask is tried on."""
MADE_UP: Final = ("xqzvw", "flibbertigibbet")
"""Words that no checkpoint knows: what a concept's measure is held against."""
FIRST: Final = 1e-5
"""Ratio that a mask grows from, to four times its size each time."""
NARROWED: Final = 2
"""Ratios tried between the last that leaves too much and the first that does not: where a straight line says,
and half way."""


def trial_scheme(attribution: AttributionSettings) -> AttributionSettings:
    """A few whole paths, matched, with the sampler's own timesteps."""
    usual = attribution.staggered or attribution.objective == "denoise"
    return replace(
        attribution,
        trajectories=PATHS,
        pictures=PATHS,
        restart=False,
        staggered=False,
        antithetic=False,
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


def growing_rows(attribution: AttributionSettings, concepts: int, most: float) -> int:
    """Rows that growing the masks of so many concepts takes at most, on paths of its own."""
    scheme = trial_scheme(attribution)
    return concepts * (sampler_rows(scheme) + (1 + ratios_tried(most)) * scheme.pairs)


def ratios_tried(most: float) -> int:
    """How many ratios up to a largest one ``smallest`` tries, at most."""
    return 1 + max(0, math.ceil(math.log(most / FIRST, 4))) + NARROWED


def smallest(left: Callable[[float], float], wanted: float, most: float) -> float:
    """The smallest ratio found that leaves no more than wanted; where none does, the one that leaves least.

    Args:
        left: What a ratio leaves.
        wanted: What it may leave.
        most: The largest ratio.
    """
    ratio, tried = min(FIRST, most), {0.0: 1.0}
    while True:
        tried[ratio] = left(ratio)
        if tried[ratio] <= wanted or ratio >= most:
            break
        ratio = min(4 * ratio, most)
    if tried[ratio] > wanted:
        return min(tried, key=lambda one: tried[one] if one else math.inf)
    for number in range(NARROWED):
        below = max(one for one in tried if tried[one] > wanted and one < ratio)
        if not below:
            break
        share = 0.5 if number else (tried[below] - wanted) / (tried[below] - tried[ratio])
        between = below * (ratio / below) ** min(max(share, 0.1), 0.9)
        tried[between] = left(between)
        ratio = between if tried[between] <= wanted else ratio
    return ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """The ratio that was found, and what its mask leaves of each concept's direction where it grew."""

    ratio: float
    left: tuple[float, ...]


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
        return HeldOut(self._models, pairs, self._micro_batch).control(mask, strength, generator)

    def grown(
        self,
        concepts: Sequence[CadConcept],
        masks: Callable[[float], ComponentMask],
        strength: float,
        wanted: float,
        most: float,
    ) -> Grown:
        """The smallest mask that leaves no more than is wanted of any concept's direction.

        Neither the mask's own noise is looked at, nor that on which it is tried.
        """
        pairs = [self._shelf.pairs(concept, self._scheme, "growing") for concept in concepts]
        held_out = [HeldOut(self._models, one, self._micro_batch) for one in pairs]
        found: dict[float, tuple[float, ...]] = {}
        with progress.bar(ratios_tried(most), "growing the mask", unit="mask") as bar:

            def left(ratio: float) -> float:
                mask = masks(ratio)
                found[ratio] = tuple(one.left(mask, strength) for one in held_out)
                bar.update()
                return max(found[ratio])

            ratio = smallest(left, wanted, most)
        return Grown(ratio=ratio, left=found[ratio])

    def made_up(self, concept: CadConcept) -> float | None:
        """The measure with made-up words in the concept's place.

        None of ``denoise``, whose measure knows no base, and where no prompt says the concept's name.
        """
        named = [prompt for prompt in concept.prompts if concept.name in prompt]
        if self._scheme.objective == "denoise" or not named:
            return None
        # the last time that it stands there: a template may hold the same word, as "a photo of a photo"
        split = [named[number % len(named)].rpartition(concept.name) for number in range(len(MADE_UP))]
        prompts = tuple(f"{a}{word}{b}" for (a, _, b), word in zip(split, MADE_UP, strict=True))
        if prompts not in self._made_up:
            nothing = CadConcept(name="made-up words", prompts=prompts, seed=0)
            pairs = self._shelf.pairs(nothing, self._scheme, "control")
            self._made_up[prompts] = measure(self._models, pairs, {}, self._micro_batch).mean
        return self._made_up[prompts]
