"""Shares, their differences and ratios, each as a Score with a 95 % interval.

Pictures of one phrase are alike, so a hundred of them say less about other phrases than a hundred pictures of
a hundred phrases. Where the phrases are given, each interval is the wider of two: of pictures drawn by
themselves, and of whole phrases drawn with replacement.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

from surgery.record import Score

CONFIDENCE = 0.95
_RESAMPLES = 4_000
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

Hits = Bool[np.ndarray[Any, Any], " pictures"]
Groups = Int[np.ndarray[Any, Any], " pictures"]
"""The number of each picture's phrase."""
Rows = Int[np.ndarray[Any, Any], " rows"]
"""Places of pictures."""


def share(name: str, hits: Hits, groups: Groups | None = None) -> Score:
    """The share of pictures that are hits, with Wilson's interval.

    Source: Wilson 1927, as ``scipy.stats.binomtest`` computes it; it keeps its coverage at 0 and at 1.
    """
    count = len(hits)
    result = binomtest(int(hits.sum()), count)
    interval = result.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    score = Score(
        name=name,
        value=float(hits.mean()),
        low=float(interval.low),
        high=float(interval.high),
        count=count,
    )
    sums, counts = _regrouped(groups, hits)
    return _widened(score, sums[:, 0] / counts)


def difference(name: str, before: Hits, after: Hits, groups: Groups | None = None, *, seed: int = 0) -> Score:
    """The share after minus the share before, of pictures in pairs (same prompt, same seed)."""
    tables = _resampled(before, after, seed)
    changes = tables[:, 0, 1] - tables[:, 1, 0]
    value = float(after.mean() - before.mean())
    score = _score(name, value, changes / tables.sum(axis=(1, 2)), len(before))
    sums, counts = _regrouped(groups, before, after, seed=seed)
    return _widened(score, (sums[:, 1] - sums[:, 0]) / counts)


def ratio(name: str, top: Hits, bottom: Hits, groups: Groups | None = None, *, seed: int = 0) -> Score | None:
    """The share of ``top`` divided by the share of ``bottom``, in pairs; None when ``bottom`` has no hit."""
    if not bottom.any():
        return None
    tables = _resampled(bottom, top, seed)
    ratios = tables[:, :, 1].sum(axis=1) / tables[:, 1, :].sum(axis=1)
    score = _score(name, float(top.mean() / bottom.mean()), ratios, len(top))
    sums, _ = _regrouped(groups, top, bottom, seed=seed)
    hit = sums[:, 1] > 0
    return _widened(score, sums[hit, 0] / sums[hit, 1])


def _regrouped(
    groups: Groups | None, *hits: Hits, seed: int = 0
) -> tuple[Float[np.ndarray[Any, Any], "resamples rows"], Float[np.ndarray[Any, Any], " resamples"]]:
    """Hits of each row, and pictures, in samples of whole groups drawn with replacement.

    Source: the cluster bootstrap, Davison and Hinkley 1997, section 3.8.
    """
    names, which = np.unique([] if groups is None else groups, return_inverse=True)
    if len(names) < 2:  # one group says nothing of others, and no group was asked for
        return np.zeros((0, len(hits))), np.zeros(0)
    sums = np.stack([np.bincount(which, weights=row) for row in hits], axis=1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    return drawn @ sums, drawn @ np.bincount(which).astype(float)


def _widened(score: Score, resampled: Float[np.ndarray[Any, Any], " resamples"]) -> Score:
    if not len(resampled):
        return score
    low, high = np.quantile(resampled, TAILS)
    return replace(score, low=min(score.low, float(low)), high=max(score.high, float(high)))


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
    low, high = np.quantile(resampled, TAILS)
    # the smoothing pulls the interval towards the middle; it always holds what was measured
    return Score(
        name=name, value=value, low=min(float(low), value), high=max(float(high), value), count=count
    )


def bootstrap(
    name: str, groups: Groups, statistic: Callable[[Rows], float], *, resamples: int = 200, seed: int = 0
) -> Score:
    """Any statistic of pictures, with an interval from whole groups (a lone group: pictures) drawn anew.

    Args:
        name: Of the score.
        groups: The group of each picture.
        statistic: Its value for some rows of pictures, repeats allowed.
        resamples: How many times groups are drawn.
        seed: Of the draws.

    Source: the basic interval, Davison and Hinkley 1997, eq. 5.6: a statistic that repeats make larger, as a
    distance between distributions, keeps its place in it.
    """
    everything = np.arange(len(groups))
    value = statistic(everything)
    names, which = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        which = everything
    members = [np.flatnonzero(which == number) for number in range(which.max() + 1)]
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([members[number] for number in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ]
    low, high = 2 * value - np.quantile(drawn, TAILS[::-1])
    return Score(
        name=name,
        value=float(value),
        low=min(float(low), float(value)),
        high=max(float(high), float(value)),
        count=len(groups),
    )
