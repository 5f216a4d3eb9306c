"""What taking weights away will do to a concept's measure, told without doing it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.anatomy import weights_of
from surgery.diffusion import Models
from surgery.methods.cad.attribution import attribution_of
from surgery.methods.cad.gradients import Grading, Sums, add_gradients, squared_derivatives
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import Pairs

Predictor: TypeAlias = Literal["first_order", "gauss_newton", "midpoint", "midpoint_gauss_newton"]

PROBES: Final = 8
"""Rounds of random signs behind a curvature, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Per weight: what the measure loses (``linear``) and gains (``square``) when it is set to nothing."""

    linear: Mapping[str, Float[Tensor, "*shape"]]
    square: Mapping[str, Float[Tensor, "*shape"]]

    def of(self, mask: ComponentMask, strength: float = 1.0) -> float:
        """The change of the measure when so much of the masked weights is taken away: -s Σα + s² Σh."""
        total = 0.0
        for name, places in mask.places.items():
            total -= strength * float(places.take(self.linear[name]).double().sum())
            if name in self.square:
                total += strength**2 * float(places.take(self.square[name]).double().sum())
        return total


def predict(
    models: Models,
    pairs: Pairs,
    grading: Grading,
    predictor: Predictor,
    *,
    share: float = 0.0,
    probes: int = PROBES,
    generator: torch.Generator | None = None,
) -> Prediction:
    """The prediction that a rule makes.

    Args:
        models: The unedited checkpoint.
        pairs: Noisy pictures with their targets.
        grading: Weights and how passes are made.
        predictor: ``first_order`` is -Σα. ``gauss_newton`` adds h = w² · mean ‖∂ε/∂w‖², which is half the
            second derivative of a squared distance times w². ``midpoint`` takes the gradient where all
            weights are smaller by half of ``share``, ``midpoint_gauss_newton`` both.
        share: Share of the weights that will be taken away, for the midpoint.
        probes: Rounds of random signs behind the curvature.
        generator: Of the signs; one of seed 0 when left out.

    Source: 9 of the study; the midpoint rule for ∫ ∂J along the way.
    """
    shrunk = share / 2 if predictor.startswith("midpoint") else 0.0
    where = replace(grading, shrunk=shrunk)
    sums = Sums()
    measured = add_gradients(models, pairs, where, sums)
    found = attribution_of(models, grading, sums, measured, len(pairs))
    square: dict[str, Tensor] = {}
    if predictor.endswith("gauss_newton"):
        own = generator or torch.Generator().manual_seed(0)
        # of a measure that falls with the squared distance the curvature does, too
        found_squares = curvature(models, pairs, where, probes, own)
        square = {name: pairs.towards * one for name, one in found_squares.items()}
    return Prediction(linear=dict(found.scores()), square=square)


def curvature(
    models: Models, pairs: Pairs, grading: Grading, probes: int, generator: torch.Generator
) -> dict[str, Float[Tensor, "*shape"]]:
    """H = w² · mean over pairs of ‖∂ε/∂w‖² for each weight: how much its loss disturbs the predictions."""
    squares = squared_derivatives(models, pairs, grading, probes, generator)
    weights = weights_of(models, grading.names)
    return {
        name: weight.detach().float().cpu().square() * squares[name] / (probes * len(pairs))
        for name, weight in weights.items()
    }
