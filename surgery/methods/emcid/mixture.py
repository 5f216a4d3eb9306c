"""Blends: one source that is to mean several destinations, each in some measure."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from surgery.errors import MethodError
from surgery.methods.emcid.nouns import Concept
from surgery.methods.emcid.offsets import Target


def single(concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts with the parts of each blend in its place: what Stage I learns."""
    return [part for concept in concepts for part in (concept.parts or (concept,))]


def mixed(targets: Sequence[Target], concepts: Sequence[Concept]) -> list[Target]:
    """One target for each concept, from those of ``single(concepts)``; blends have their parts' mixture."""
    found, start = [], 0
    for concept in concepts:
        count = len(concept.parts) or 1
        own = targets[start : start + count]
        weights = [weight for _, weight in concept.edit.blend]
        found.append(mix_targets(own, weights, concept) if concept.parts else own[0])
        start += count
    return found


def mix_targets(targets: Sequence[Target], weights: Sequence[float], concept: Concept) -> Target:
    """v* = Σ fₐ vₐ* as one target; with Σ fₐ = 1 the offset is Σ fₐ δₐ, since all start from one source.

    Losses are those of the part that learned least, so that a blend counts as learned when all parts are.

    Raises:
        MethodError: when there is not one weight for each target.

    Source: 2.7 of the study.
    """
    if len(targets) != len(weights) or not targets:
        raise MethodError(
            f"{concept.label}: {len(targets)} targets and {len(weights)} weights; expected one for each."
        )
    first = targets[0]
    worst = max(targets, key=lambda target: target.last_loss - target.first_loss)
    factors = torch.tensor(list(weights), dtype=torch.float64)
    offsets = torch.stack([target.offset for target in targets])
    seconds = [target.second for target in targets if target.second is not None]
    return replace(
        first,
        concept=concept,
        offset=(factors @ offsets.double()).to(first.offset.dtype),
        steps=max(target.steps for target in targets),
        first_loss=worst.first_loss,
        last_loss=worst.last_loss,
        settled=all(target.settled for target in targets),
        clamped=any(target.clamped for target in targets),
        finite=all(target.finite for target in targets),
        second=mix_targets(seconds, weights, concept) if seconds else None,
    )
