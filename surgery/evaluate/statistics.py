"""Shares, their differences and ratios, each as a Score with a 95 % interval."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from surgery.record import Score

CONFIDENCE = 0.95
_RESAMPLES = 4_000

Hits = Bool[np.ndarray[Any, Any], " pictures"]


def share(name: str, hits: Hits) -> Score:
    """The share of pictures that are hits, with Wilson's interval.

    Source: Wilson 1927, as ``scipy.stats.binomtest`` computes it; it keeps its coverage at 0 and at 1.
    """
    count = len(hits)
    result = binomtest(int(hits.sum()), count)
    interval = result.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Score(
        name=name,
        value=float(hits.mean()),
        low=float(interval.low),
        high=float(interval.high),
        count=count,
    )


def difference(name: str, before: Hits, after: Hits, seed: int = 0) -> Score:
    """The share after minus the share before, of pictures in pairs (same prompt, same seed)."""
    tables = _resampled(before, after, seed)
    changes = tables[:, 0, 1] - tables[:, 1, 0]
    return _score(name, float(after.mean() - before.mean()), changes / tables.sum(axis=(1, 2)), len(before))


def ratio(name: str, top: Hits, bottom: Hits, seed: int = 0) -> Score | None:
    """The share of ``top`` divided by the share of ``bottom``, in pairs; None when ``bottom`` has no hit."""
    if not bottom.any():
        return None
    tables = _resampled(bottom, top, seed)
    ratios = tables[:, :, 1].sum(axis=1) / tables[:, 1, :].sum(axis=1)
    return _score(name, float(top.mean() / bottom.mean()), ratios, len(top))


def _resampled(first: Hits, second: Hits, seed: int) -> Float[np.ndarray[Any, Any], "resamples 2 2"]:
    """Counts of the four kinds of pairs (miss/hit, miss/hit) in bootstrap samples.

    Drawing n pairs with replacement is a multinomial draw over the four kinds. Half a pair is added to each
    kind (Agresti and Min 2005), before drawing so that an interval has its width also where no pair differs,
    and after drawing so that no share is zero below a fraction.
    """
    counts = np.zeros((2, 2))
    np.add.at(counts, (first.astype(int), second.astype(int)), 1)
    chances = (counts + 0.5) / (counts.sum() + 2)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(first), chances.ravel(), size=_RESAMPLES).reshape(-1, 2, 2)
    return drawn + 0.5


def _score(name: str, value: float, resampled: np.ndarray[Any, Any], count: int) -> Score:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # the smoothing pulls the interval towards the middle; it always holds what was measured
    return Score(
        name=name, value=value, low=min(float(low), value), high=max(float(high), value), count=count
    )
