"""The base against itself: how often the evaluation sees a change that is none, and a loss that is one.

Two sets of pictures of the same prompts and of disjoint seeds are drawn from one pool again and again. Given
the pool each seed is as likely in the one set as in the other, so nothing changed between them, and the means
of two sets of m of the pool's N differ as those of independent sets would: the variance of the difference is
2 S²/m whatever N. Hence a sound test calls 5 of 100 changed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from surgery.evaluate import (
    SampleSize,
    advice,
    difference,
    holm,
    measured_spread,
    p_value,
    sample_size,
)

if TYPE_CHECKING:  # a pool is drawn by libraries that take long to load
    from pool import Pool

LEVEL: Final = 0.05
FALSE_ALARMS: Final = (0.01, 0.10)  # of all runs, at least and at most
LEAST_POWER: Final = 0.75  # 0.8 less two and a half standard deviations of 400 runs
HURT: Final = {"evenly": 1.0, "on a tenth of the phrases": 0.1}

Hits = np.ndarray[Any, Any]


def null_bench(options: argparse.Namespace) -> bool:
    """Draws what is missing of the pool, then ``null_test``."""
    from pool import draw_pool

    return null_test(draw_pool(options), options.times, options.loss, options.seed)


def null_test(pool: Pool, times: int, loss: float, seed: int) -> bool:
    """Prints how often a change was seen where there is none, and how often a planted one was found."""
    print(
        f"{pool.pictures} pictures of {len(pool.phrases)} phrases, {pool.hits.mean():.1%} show what was asked"
    )
    alarms = false_alarms(pool.hits, times, seed)
    print(f"base against itself, {times} times, {alarms.pairs} pairs of disjoint seeds; seen as changed:")
    print(f"  by the test          {alarms.test}")
    print(f"  by the 95 % interval {alarms.interval}")
    print(f"  any phrase, by Holm  {alarms.family}")
    low, high = (share * times for share in FALSE_ALARMS)
    good = low <= alarms.test <= high and alarms.interval <= high and alarms.family <= high
    found = [planted(pool.hits, loss, kind, 4 * times, seed) for kind in HURT]
    good = good and all(power >= LEAST_POWER for power in found)
    print("all as it must be" if good else "NOT AS IT MUST BE")
    return good


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """In how many resamplings of ``pairs`` pairs a change was seen, by each of the evaluation's ways."""

    pairs: int
    test: int
    interval: int
    family: int


def false_alarms(hits: Hits, times: int, seed: int) -> Alarms:
    """What the evaluation makes of as many pictures of each prompt as two disjoint sets can have."""
    rng = np.random.default_rng(seed)
    test = interval = family = 0
    for number in range(times):
        before, after, groups = disjoint(hits, hits.shape[2] // 2, rng)
        score = difference("change", before, after, groups, seed=number)
        test += p_value(before, after, groups) < LEVEL
        interval += not score.low <= 0 <= score.high
        each = [p_value(before[groups == phrase], after[groups == phrase]) for phrase in range(len(hits))]
        family += min(holm(each)) < LEVEL
    return Alarms(pairs=len(before), test=test, interval=interval, family=family)


def planted(hits: Hits, loss: float, kind: str, times: int, seed: int) -> float:
    """How often a planted loss is found in as many pictures as the advice names for it.

    The advice knows what a user can know: how pairs vary in one evaluation of the whole pool with the loss.
    """
    rng = np.random.default_rng([seed, len(kind)])
    spread = measured_spread(*hurt(disjoint(hits, hits.shape[2] // 2, rng), loss, HURT[kind], rng))
    size = sample_size(loss, spread, hits.shape[1])
    if size.phrases > len(hits):
        raise SystemExit(f"{loss:.1%} takes {size.phrases} phrases, the pool has {len(hits)}; enlarge it")
    found = 0
    for _ in range(times):
        some = rng.choice(len(hits), size.phrases, replace=False)
        found += p_value(*hurt(disjoint(hits[some], 1, rng), loss, HURT[kind], rng)) < LEVEL
    print(f"a loss of {100 * loss:g} points, {kind}: found {found} of {times} times ({found / times:.0%})")
    print(f"  {advice(SampleSize(pictures=size.pictures, phrases=size.phrases), spread, loss)}", flush=True)
    return found / times


def disjoint(hits: Hits, each: int, rng: np.random.Generator) -> tuple[Hits, Hits, Hits]:
    """Two sets of ``each`` pictures of every prompt, no picture in both, and the phrase of each pair."""
    shuffled = rng.permuted(hits, axis=2)
    groups = np.repeat(np.arange(len(hits)), hits.shape[1] * each)
    return shuffled[:, :, :each].ravel(), shuffled[:, :, each : 2 * each].ravel(), groups


def hurt(
    pairs: tuple[Hits, Hits, Hits], loss: float, share: float, rng: np.random.Generator
) -> tuple[Hits, Hits, Hits]:
    """The pairs with hits turned to misses in the second set, ``loss`` of all its pictures on average.

    Each phrase is hurt with probability ``share``, and then loses each of its hits with the same one.
    """
    before, after, groups = pairs
    chance = min(1.0, loss / (share * after.mean()))
    hit = (rng.random(groups.max() + 1) < share)[groups]
    return before, after & ~(hit & (rng.random(len(after)) < chance)), groups
