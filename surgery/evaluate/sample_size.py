"""How many pictures it takes to see a loss, and what an evaluation of a given size could have seen."""

from dataclasses import dataclass
from math import ceil, floor, log2, sqrt
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from surgery.evaluate.statistics import Groups, Hits

LEVEL: Final = 0.05
POWER: Final = 0.8
# so many phrases say something of how alike the pictures of one are; as alike as they usually are, else
_TELLING_PHRASES: Final = 10
_USUAL_LIKENESS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How much pairs of pictures vary when nothing is lost, and how alike those of one phrase are.

    Attributes:
        churn: Share of pairs (0 to 1) that differ by chance alone, as many one way as the other. Pictures
            of the same seed differ less than pictures of disjoint seeds.
        likeness: Intraclass correlation of the changes within a phrase, 0 to 1: 0 when each picture stands
            for itself, 1 when all pictures of a phrase change together.
    """

    churn: float
    likeness: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """Pairs of pictures, and the phrases that they are spread over evenly."""

    pictures: int
    phrases: int


def measured_spread(before: Hits, after: Hits, groups: Groups | None = None) -> Spread:
    """The spread that pairs show: of an earlier evaluation, or of the first hundreds of pictures of one.

    What changed one way more than the other counts as loss or gain, not as churn. The intraclass correlation
    is that of the analysis of variance for phrases of unequal size, 0 when it comes out negative.

    Source: Donner 1986.
    """
    changes = after.astype(float) - before.astype(float)
    churn = 2 * min((changes < 0).mean(), (changes > 0).mean())
    names, which = np.unique([] if groups is None else groups, return_inverse=True)
    if not 2 <= len(names) < len(changes):
        return Spread(churn=float(churn))
    return Spread(churn=float(churn), likeness=_intraclass(changes, which))


def cautious(spread: Spread, size: SampleSize) -> Spread:
    """A measured spread as it is to be planned with: few pairs have seen little of it.

    One pair more is counted as different. With fewer phrases than can say how alike pictures of a phrase are,
    they are taken to be as alike as is usual.
    """
    churn = (spread.churn * size.pictures + 1) / (size.pictures + 1)
    few = size.phrases < _TELLING_PHRASES
    return Spread(churn=churn, likeness=max(spread.likeness, _USUAL_LIKENESS) if few else spread.likeness)


def _intraclass(values: Float[np.ndarray[Any, Any], " pictures"], which: Groups) -> float:
    sizes = np.bincount(which)
    means = np.bincount(which, weights=values) / sizes
    count, groups = len(values), len(sizes)
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (groups - 1)
    within = float(((values - means[which]) ** 2).sum()) / (count - groups)
    size = (count - (sizes**2).sum() / count) / (groups - 1)
    whole = between + (size - 1) * within
    return max(0.0, float((between - within) / whole)) if whole > 0 else 0.0


def design_effect(per_phrase: float, likeness: float) -> float:
    """How many pictures of ``per_phrase`` to a phrase it takes to say as much as one of its own phrase.

    Source: Kish 1965.
    """
    return 1 + (per_phrase - 1) * likeness


def sample_size(
    loss: float, spread: Spread, per_phrase: int, *, power: float = POWER, level: float = LEVEL
) -> SampleSize:
    """How many pairs find a loss of so large a share with the given probability, by a two-sided exact test.

    Args:
        loss: Share (0 to 1) of pictures that no longer show what they are to, net: 0.05 for five points.
        spread: How pairs vary without the loss; each lost picture makes one more pair that differs.
        per_phrase: Pictures of each phrase.
        power: Probability that a loss of that size is found.
        level: Probability that a loss is found where there is none, at most.

    Source: Connor 1987 for McNemar's test (after Miettinen 1968), with the continuity correction
    that Fleiss, Levin and Paik 2003 give for two shares worked out for pairs, since our test is exact; times
    the design effect.
    """
    differ = min(1.0, spread.churn + loss)
    root = _threshold(loss, differ, power, level)
    # sqrt(n) of n·loss - sqrt(n)·root - 1 = 0
    alone = ((root + sqrt(root**2 + 4 * loss)) / (2 * loss)) ** 2
    pictures = alone * design_effect(per_phrase, spread.likeness)
    phrases = max(fewest_phrases(level), ceil(pictures / per_phrase))
    return SampleSize(pictures=phrases * per_phrase, phrases=phrases)


def smallest_loss(
    size: SampleSize, spread: Spread, *, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The smallest loss (share, 0 to 1) that so many pairs find with the given probability; None for none.

    The inverse of ``sample_size``.
    """
    if size.phrases < fewest_phrases(level):
        return None
    alone = size.pictures / design_effect(size.pictures / size.phrases, spread.likeness)

    def surplus(loss: float) -> float:
        differ = min(1.0, spread.churn + loss)
        return alone * loss - sqrt(alone) * _threshold(loss, differ, power, level) - 1

    if surplus(1.0) < 0:
        return None
    return float(brentq(surplus, 0.0, 1.0))


def fewest_phrases(level: float = LEVEL) -> int:
    """With fewer phrases no swapping of whole phrases is as rare as ``level``, whatever was lost."""
    return floor(1 - log2(level)) + 1


def _threshold(loss: float, differ: float, power: float, level: float) -> float:
    """What the standardised loss has to reach; the variance without loss, and the one with it."""
    normal = NormalDist()
    without, beside = sqrt(differ), sqrt(max(0.0, differ - loss**2))
    return normal.inv_cdf(1 - level / 2) * without + normal.inv_cdf(power) * beside


def advice(
    size: SampleSize,
    spread: Spread,
    loss: float = 0.05,
    *,
    power: float = POWER,
    level: float = LEVEL,
) -> str:
    """In plain words: what so many pictures could have seen, and how many a loss of ``loss`` would take."""
    each = size.pictures / size.phrases
    smallest = smallest_loss(size, spread, power=power, level=level)
    seen = (
        f"no loss would be found with a probability of {power:.0%}"
        if smallest is None
        else f"a loss of {100 * smallest:.1f} points or more is found with a probability of {power:.0%}"
    )
    few = (
        f"; it takes at least {fewest_phrases(level)} phrases" if size.phrases < fewest_phrases(level) else ""
    )
    needed = sample_size(loss, spread, max(1, round(each)), power=power, level=level)
    return (
        f"With {size.pictures} pairs of pictures of {size.phrases} phrases, {seen}{few} (two-sided test at "
        f"{level:g}; {spread.churn:.1%} of pairs differ by chance, likeness within a phrase "
        f"{spread.likeness:.2f}). A loss of {100 * loss:g} points takes {needed.pictures} pairs, "
        f"{max(1, round(each))} of each of {needed.phrases} phrases."
    )
