"""Generalised guidance: concepts from patches, control from a prompt, and one base that all pull away from.

Source: arXiv 2312.08195; (A1), (A2) and (U) of the study.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from surgery.diffusion.algebra import across, guided, limited


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedConcept:
    """How one patch takes part.

    Attributes:
        weight: w_K of its branch.
        strength: σ_K of the patch there.
        base_strength: σ_u of the patch in the base branch; 0 is the published rectification, 1 ordinary
            guidance with the tuned model, between the two a weak model.
        control_strength: σ_C of the patch in the control branch.
    """

    weight: float = 2.5
    strength: float = 1.0
    base_strength: float = 0.0
    control_strength: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GcfgSettings:
    """How branches are weighed.

    Attributes:
        concepts: One for each patch.
        control_weight: w_C of the prompt's branch; 0 leaves it out.
        across: Whether only what of the control lies across all concepts counts, so that a prompt that names
            the concept does not apply it twice.
        limit: The longest that any branch may pull, in units of latents; no limit when left out.
    """

    concepts: tuple[GuidedConcept, ...] = (GuidedConcept(),)
    control_weight: float = 2.5
    across: bool = False
    limit: float | None = None

    @property
    def base_strengths(self) -> tuple[float, ...]:
        """Of each patch in the base branch."""
        return tuple(one.base_strength for one in self.concepts)

    @property
    def control_strengths(self) -> tuple[float, ...]:
        """Of each patch in the control branch."""
        return tuple(one.control_strength for one in self.concepts)

    def concept_strengths(self, number: int) -> tuple[float, ...]:
        """Of each patch in the branch of one concept, in which the others are as in the base."""
        own = list(self.base_strengths)
        own[number] = self.concepts[number].strength
        return tuple(own)


def combined(
    base: Float[Tensor, "pictures ..."],
    concepts: Sequence[Float[Tensor, "pictures ..."]],
    control: Float[Tensor, "pictures ..."] | None,
    settings: GcfgSettings,
) -> Float[Tensor, "pictures ..."]:
    """e(0;σ_u) + Σ w_K [e(0;σ_K) - e(0;σ_u)] + w_C [e(c;σ_C) - e(0;σ_u)].

    Args:
        base: Without a prompt.
        concepts: One for each of the settings' concepts, without a prompt.
        control: With the prompt; None where it has no weight.
        settings: Weights.
    """
    branches = [(one.weight, found) for one, found in zip(settings.concepts, concepts, strict=True)]
    if control is not None:
        if settings.across:
            control = base + across(control - base, [found - base for found in concepts])
        branches.append((settings.control_weight, control))
    if settings.limit is not None:
        branches = [(weight, base + limited(one - base, settings.limit)) for weight, one in branches]
    return guided(base, branches)
