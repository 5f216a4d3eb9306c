"""ConceptDiffusion: a prompt's score is held against those of its subjects, and what is missing is added.

Source: arXiv 2312.15964; section 2 of the study. A score is a prediction less the one without a prompt.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.diffusion.algebra import across, along, cosine, open_below, trimmed

Score: TypeAlias = Float[Tensor, "pictures ..."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptSettings:
    """Which parts are added, how strongly, and when.

    Attributes:
        guidance: w, of the prompt's score.
        weight: w_c, of what is added.
        threshold: A subject whose cosine with the prompt's score lies below is added; 1/(subjects + 1) when
            left out.
        over_threshold: One above is taken off; never when left out.
        abstract_threshold: The part of the prompt's score that no subject accounts for is added while its
            cosine with the score lies below.
        signed: Whether a subject that points against the prompt counts as missing (ours) or as well there
            (published: the cosine's size).
        parts: ``sum`` takes the abstract part across the sum of the subjects (published), ``span`` across
            each of them (ours).
        softness: Width of the gates; 0 is a step (published).
        first_step: Of those that add anything, counted from noise; ``last_step`` is not among them.
    """

    guidance: float = 7.5
    weight: float = 7.5
    threshold: float | None = None
    over_threshold: float | None = 0.8
    abstract_threshold: float = 0.7
    signed: bool = False
    parts: Literal["sum", "span"] = "sum"
    softness: float = 0.0
    first_step: int = 0
    last_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterSettings:
    """The later release, which nothing was published of.

    Scores are trimmed before anything else; a subject is added whole, with momentum, when its mean cosine
    over the last steps (without this one) is small; instead of adding the abstract part, what the subjects
    account for is taken off.
    """

    guidance: float = 7.5
    weight: float = 8.5
    threshold: float = 0.5
    abstract_threshold: float = 0.5
    remembered: int = 5
    momentum_scale: float = 0.5
    momentum_decay: float = 0.5
    quantile: float = 0.9
    first_step: int = 6
    last_step: int | None = 50


INITIAL: Final = ConceptSettings()
"""The release of December 2023."""
LATER: Final = LaterSettings()
"""The release of March 2024."""
OURS: Final = ConceptSettings(signed=True, parts="span", softness=0.05)
"""Signed cosines, an abstract part across every subject, soft gates."""


def combined(
    base: Score, prompt: Score, subjects: Sequence[Score], settings: ConceptSettings, step: int
) -> Score:
    """The prediction to step with, from those without a prompt, with it, and with each subject's phrase.

    With no subject, and where every gate is shut, it is classifier-free guidance to the bit.

    Source: (B1) and (B2) of the study.
    """
    whole = prompt - base
    result = base + settings.guidance * whole
    active = step >= settings.first_step and (settings.last_step is None or step < settings.last_step)
    if not subjects or not active:
        return result
    scores = [subject - base for subject in subjects]
    threshold = 1 / (len(scores) + 1) if settings.threshold is None else settings.threshold
    for score in scores:
        share = cosine(whole, score)
        share = share if settings.signed else share.abs()
        gate = open_below(share, threshold, settings.softness)
        if settings.over_threshold is not None:
            gate = gate - (1 - open_below(share, settings.over_threshold, settings.softness))
        missing = score - along(score, whole)
        result = result + settings.weight * gate * missing
    abstract = abstract_part(whole, scores, settings.parts)
    share = cosine(whole, abstract).abs()
    gate = open_below(share, settings.abstract_threshold, settings.softness)
    return (result + settings.weight * gate * trimmed(abstract, share)).to(base)


def abstract_part(whole: Score, scores: Sequence[Score], parts: Literal["sum", "span"]) -> Score:
    """The prompt's score less what its subjects account for: across their sum, or across each of them."""
    if parts == "span":
        return across(whole, scores)
    return whole - along(whole, torch.stack(list(scores)).sum(0))


@dataclass(slots=True)
class LaterGuide:
    """The later release; it remembers earlier steps of one path."""

    settings: LaterSettings = LATER
    _cosines: list[deque[Tensor]] = field(default_factory=list)
    _momenta: list[Tensor] = field(default_factory=list)

    def combined(self, base: Score, prompt: Score, subjects: Sequence[Score], step: int) -> Score:
        """The prediction to step with; call it for each step of a path in turn."""
        knobs = self.settings
        result = base + knobs.guidance * (prompt - base)
        if not subjects:
            return result
        if not self._cosines:
            self._cosines = [deque(maxlen=knobs.remembered) for _ in subjects]
            self._momenta = [torch.zeros_like(base) for _ in subjects]
        whole = trimmed(prompt - base, knobs.quantile)
        scores = [trimmed(subject - base, knobs.quantile) for subject in subjects]
        active = step >= knobs.first_step and (knobs.last_step is None or step < knobs.last_step)
        abstract = whole
        for number, score in enumerate(scores):
            abstract = abstract - along(abstract, score)
            past = self._cosines[number]
            share = torch.stack(list(past)).mean(0) if past else cosine(whole, score).abs()
            past.append(cosine(whole, score).abs())
            if active:
                result = result + knobs.weight * self._added(
                    number, score, open_below(share, knobs.threshold)
                )
        if active:
            share = cosine(whole, abstract).abs()
            gate = open_below(share, knobs.abstract_threshold)
            result = result - knobs.weight * gate * (whole - abstract)
        return result.to(base)

    def _added(self, number: int, score: Score, gate: Tensor) -> Score:
        """A subject's score with the momentum of what was added of it before."""
        knobs, before = self.settings, self._momenta[number]
        added = gate * (score + knobs.momentum_scale * before)
        self._momenta[number] = knobs.momentum_decay * before + (1 - knobs.momentum_decay) * added
        return added
