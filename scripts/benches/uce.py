"""UCE, the closed form that edits cross-attention: a baseline in few lines, as its authors set it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy import locate
from surgery.checkpoint import Checkpoint
from surgery.delta import Delta, LowRank
from surgery.diffusion.text import encode_prompts
from surgery.patch import Patch, Term, make_patch

TEMPLATES = ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}")
RIDGE = 0.5


def uce_patch(
    checkpoint: Checkpoint, models: Any, edits: Sequence[tuple[str, str | None]], kept: Sequence[str]
) -> Patch:
    """W' = W (I + G), G = (A - C) Cᵀ (λ I + C Cᵀ + P Pᵀ)⁻¹ for every key and value map of cross-attention.

    Columns of C are the last subject tokens of the sources, of A those of the destinations (the end token of
    the empty prompt where there is none), of P those of names to keep. Weights 1 and 1, λ 0.5, five prompts
    for each phrase.

    Source: Gandikota et al. 2024 (UCE), eq. 7, with the settings of its present code.
    """
    sources = _columns(models, [source for source, _ in edits])
    aims = torch.cat([_columns(models, [aim]) if aim else _nothing(models) for _, aim in edits], 1)
    others = _columns(models, kept) if kept else sources[:, :0]
    gram = RIDGE * torch.eye(len(sources), dtype=torch.float64) + sources @ sources.T + others @ others.T
    right = torch.linalg.solve(gram, sources).T
    maps = [name for name in checkpoint.tensors if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    terms = {
        name: LowRank(left=checkpoint.read(name).double() @ (aims - sources), right=right) for name in maps
    }
    return make_patch([Term(delta=Delta(terms), strength=1.0, source="uce")], checkpoint)


def _columns(models: Any, names: Sequence[str]) -> Tensor:
    """Features of the last token of each name in each template (width, names · templates), in float64."""
    pairs = [(template, name) for name in names for template in TEMPLATES]
    places = [locate(models.tokenizer, template, name).last for template, name in pairs]
    features = encode_prompts(
        models.tokenizer, models.text_encoder, [template.replace("{}", name) for template, name in pairs]
    )
    return features[torch.arange(len(pairs)), places].double().T


def _nothing(models: Any) -> Tensor:
    feature = encode_prompts(models.tokenizer, models.text_encoder, [""])[0, 1]
    return feature.double()[:, None].expand(-1, len(TEMPLATES))
