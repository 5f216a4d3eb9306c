"""Keys and values of cross-attention that read a concept's text as a scaled one: one map for all layers.

Source: section 6.4 of the study; the same normal equations as in TIME (2303.08084) and UCE (2308.14761), with
the text itself moved.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.delta import Operator
from surgery.diffusion import Models, read_prompts
from surgery.diffusion.conditions import read_without
from surgery.methods.distill.settings import DistillConcept, DistillSettings

_TINY = 1e-12
"""Singular values below this share of the largest are rounding."""


def scaled_reading(
    concept: Float[Tensor, "tokens width"],
    null: Float[Tensor, "tokens width"],
    scales: Float[Tensor, " tokens"],
    kept: Float[Tensor, "others width"],
    kept_weight: float,
    ridge: float,
) -> Operator:
    """The change ΔW = W L R with which W + ΔW maps each token c to W (null + ω (c - null)).

    It is L R = Σ (ω - 1) (c - null) cᵀ (Σ c cᵀ + λ Σ d dᵀ + μ I)⁻¹, so that ω = 1 changes nothing, and what
    is kept is held with the weight λ. Solved in float64.

    Args:
        concept: Tokens of the concepts' prompts.
        null: Tokens of the empty prompt at the same places.
        scales: ω of each.
        kept: Tokens that stay.
        kept_weight: λ of each of them.
        ridge: μ as a share of the concept's mean square.
    """
    wanted, gone, stays = (one.double() for one in (concept, null, kept))
    moment = wanted.T @ wanted + kept_weight * stays.T @ stays
    moment.diagonal().add_(ridge * wanted.square().sum() / wanted.shape[1] + torch.finfo(torch.float64).tiny)
    moved = (scales.double() - 1).unsqueeze(1) * (wanted - gone)
    # right: rows c A⁻¹; left: columns (ω - 1)(c - null)
    solved = torch.linalg.lstsq(moment, wanted.T, driver="gelsd").solution.T
    whole = moved.T @ solved
    left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
    rank = max(1, int((sizes > _TINY * sizes[0]).sum()))
    return Operator((left[:, :rank] * sizes[:rank]).contiguous(), right[:rank].contiguous())


def closed_form(
    models: Models, concepts: Sequence[DistillConcept], preserve: Sequence[str], settings: DistillSettings
) -> Operator:
    """The map of some concepts; the empty prompt and phrases to preserve stay."""
    kept = read_prompts(models, ["", *preserve]).features
    null = read_without(models, "").features[0]  # what guidance leads away from: of SDXL zeros
    found, bases, scales = [], [], []
    for concept in concepts:
        features = read_prompts(models, list(concept.prompts)).features
        found.append(features.flatten(0, 1))
        bases.append(null.repeat(len(features), 1))
        scales.append(torch.full((len(found[-1]),), concept.scale))
    told = torch.cat(found)
    return scaled_reading(
        told.cpu(),
        torch.cat(bases).cpu(),
        torch.cat(scales),
        kept.flatten(0, 1).cpu(),
        settings.preserve_weight,
        settings.ridge,
    )
