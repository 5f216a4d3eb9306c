"""Mixtures without pictures: as far from each destination in the text's features as its share says.

Beside the tuning by pictures, and a guess next to it: it costs seconds and needs no judge, but the U-Net's
own leaning, which decides which of two equally near destinations is drawn, does not show in distances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from torch import Tensor

from surgery.anatomy import frozen, text_stack
from surgery.errors import MethodError
from surgery.methods.emcid.concepts import prepare
from surgery.methods.emcid.door import rank
from surgery.methods.emcid.metric import cross_attention_metric, gathered, token_distance
from surgery.methods.emcid.mixture import single
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.nouns import Concept, ConceptEdit
from surgery.methods.emcid.offsets import Target, optimise_offsets
from surgery.methods.emcid.settings import OffsetSettings
from surgery.methods.emcid.tail import encode, tail_of
from surgery.methods.emcid.views import rows_of
from surgery.store import Store

_STEP = 1e-3  # of a weight, for slopes in float32
_READ = OffsetSettings(mode="text", metric="cross_attention")


def distant_weights(
    models: EmcidModels,
    edits: Sequence[ConceptEdit],
    shares: Mapping[str, Sequence[float]],
    settings: OffsetSettings,
    *,
    layer: int,
    reach: float = 1.0,
    store: Store | None = None,
) -> dict[str, tuple[float, ...]]:
    """The weights of each source in ``shares`` at which share × distance is equal for its destinations.

    The distance is that of the mixed features from the destination's in the cross-attention metric, the mean
    over the templates. Offsets are learned as Stage I does, or taken from the store.

    Args:
        models: The unedited checkpoint, with its U-Net.
        edits: All edits that are made together, in whose company offsets are learned; the present weights of
            blends do not matter.
        shares: For each blend's source the share of each of its destinations; positive.
        settings: Stage I.
        layer: The last block that Stage II edits.
        reach: How far weights may lie outside of 0 to 1.
        store: Where batches of offsets are kept.

    Raises:
        MethodError: when the checkpoint has two text encoders.

    Source: own; the released code has a variant by distance, which nothing calls (2.7 of the study).
    """
    if len(models.towers) > 1:
        raise MethodError(
            "mixtures by distance are for one text encoder, and this checkpoint has two. Use debias.tuning: "
            "pictures, or give each concept its mixture."
        )
    stack = text_stack(models.text_encoder)
    concepts, _ = prepare(edits, models.tokenizer, limit=stack.positions)
    # the same batches as the edit's own, so that both find them in the store
    ordered = sorted(concepts, key=rank)
    targets = optimise_offsets(models, single(ordered), settings, layer=layer, store=store)
    found, start = {}, 0
    with frozen(models.text_encoder, models.unet):
        for concept in ordered:
            own = targets[start : start + (len(concept.parts) or 1)]
            start += len(own)
            aims = shares.get(concept.edit.source)
            if concept.parts and aims is not None:
                distances = _Distances(models, concept, own, layer)
                found[concept.edit.source] = _balanced(distances, aims, reach)
    return found


class _Distances:
    """The distances of one blend's mixtures from each of its destinations."""

    @torch.no_grad()
    def __init__(
        self,
        models: EmcidModels,
        concept: Concept,
        targets: Sequence[Target],
        layer: int,
    ) -> None:
        stack = text_stack(models.text_encoder)
        pad = models.tokenizer.pad_token_id
        place = stack.device
        self._rows = rows_of(concept.parts, _READ, positions=stack.positions, pad=pad, device=place)
        self._tail = tail_of(stack, self._rows.source, layer)
        self._goal = gathered(encode(stack, self._rows.goal), self._rows.alignment.goal)
        self._metric = cross_attention_metric(models.unet, stack.width).to(place)
        self._offsets = torch.stack([target.offset for target in targets]).to(place)

    @torch.no_grad()
    def __call__(self, weights: Float[np.ndarray[Any, Any], " groups"]) -> Float[Tensor, "groups"]:
        offset = torch.tensor(weights, dtype=self._offsets.dtype, device=self._offsets.device) @ self._offsets
        owner = self._rows.owner
        features = self._tail.features(offset.expand(len(owner), -1))
        apart = token_distance(features, self._goal, self._rows.alignment, self._metric)
        total = torch.zeros(len(self._offsets), device=apart.device).index_add(0, owner, apart)
        return (total / torch.bincount(owner)).cpu()


def _balanced(distances: _Distances, shares: Sequence[float], reach: float) -> tuple[float, ...]:
    """Weights with Σ f = 1 at which log(share × distance) has the same value for every destination."""
    aims = np.log(np.array(shares))

    def whole(free: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.append(free, 1 - free.sum())

    def uneven(free: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        level = aims + np.log(distances(whole(free)).double().clamp_min(1e-12).numpy())
        return np.asarray(level - level.mean())

    start = np.array(shares[:-1]) / sum(shares)
    solved = least_squares(uneven, start, bounds=(-reach - 1e-9, 1 + reach + 1e-9), diff_step=_STEP)
    return tuple(float(weight) for weight in whole(solved.x))
