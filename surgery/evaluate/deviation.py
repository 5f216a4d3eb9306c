"""How far shares are from the wanted ones, over one phrase and over many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from surgery.evaluate.statistics import CONFIDENCE
from surgery.record import Score

_RESAMPLES = 4_000
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

Deviations = Float[np.ndarray[Any, Any], " phrases"]


def deviation(shares: Sequence[float], targets: Sequence[float]) -> float:
    """Half the sum of the distances, 0 to 1; pictures of none of the groups are as far off as can be."""
    others = max(0.0, 1 - sum(shares))
    return (sum(abs(share - target) for share, target in zip(shares, targets, strict=True)) + others) / 2


def relative_deviation(shares: Sequence[float], targets: Sequence[float]) -> float:
    """The mean of |share - target| / target over the groups that are wanted at all."""
    parts = [abs(s - t) / t for s, t in zip(shares, targets, strict=True) if t > 0]
    return sum(parts) / len(parts)


def deviation_scores(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    targets: Sequence[Sequence[float]],
    pictures: Sequence[int],
    *,
    pictures_before: Sequence[int] = (),
    seed: int = 0,
) -> list[Score]:
    """The mean deviation before and after over the phrases, what chance alone leaves, and before / after.

    Intervals are of phrases drawn with replacement; those of a lone phrase are of its pictures. Of a
    perfectly even model n pictures deviate by about 0.4 / √n for two equal groups: the mean after is to be
    read against that floor.

    Args:
        before: For each phrase the share of each group.
        after: The same after the edit.
        targets: The wanted shares.
        pictures: Decided pictures of each phrase after the edit.
        pictures_before: The same before; as many when left out.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    one, other = (
        np.array([deviation(shares, aim) for shares, aim in zip(each, targets, strict=True)])
        for each in (before, after)
    )
    floor = np.array([_by_chance(aim, n, rng) for aim, n in zip(targets, pictures, strict=True)])
    if len(one) == 1:
        counts = pictures_before[0] if pictures_before else pictures[0], pictures[0]
        return _of_one(before[0], after[0], targets[0], counts, float(floor[0]), rng)
    drawn = rng.integers(len(one), size=(_RESAMPLES, len(one)))
    scores = [
        _score(name, float(values.mean()), values[drawn].mean(axis=1), len(one))
        for name, values in (
            ("deviation_before", one),
            ("deviation_after", other),
            ("deviation_floor", floor),
        )
    ]
    if other.sum() > 0:
        below = np.maximum(other[drawn].sum(axis=1), 1e-12)
        factors = one[drawn].sum(axis=1) / below
        scores.append(_score("deviation_factor", float(one.sum() / other.sum()), factors, len(one)))
    return scores


def _of_one(
    before: Sequence[float],
    after: Sequence[float],
    targets: Sequence[float],
    pictures: tuple[int, int],
    floor: float,
    rng: np.random.Generator,
) -> list[Score]:
    """The scores of a lone phrase, their intervals by how far off its own pictures may be.

    A deviation is a distance of shares, and differs from the true one by no more than the seen shares from
    the true ones: so far it is extended to both sides. Without pictures nothing is known.
    """
    scores = []
    for name, shares, count in zip(
        ("deviation_before", "deviation_after"), (before, after), pictures, strict=True
    ):
        value, reach = deviation(shares, targets), _reach(shares, count, rng)
        low, high = max(0.0, value - reach), min(1.0, value + reach)
        scores.append(Score(name=name, value=value, low=low, high=high, count=1))
    one, other = scores
    scores.append(Score(name="deviation_floor", value=floor, low=floor, high=floor, count=1))
    if other.low > 0:
        scores.append(
            Score(
                name="deviation_factor",
                value=one.value / other.value,
                low=one.low / other.high,
                high=one.high / other.low,
                count=1,
            )
        )
    return scores


def _reach(shares: Sequence[float], pictures: int, rng: np.random.Generator) -> float:
    """How far shares of so many pictures are off, in 95 of 100 cases; half a picture is added to each."""
    if pictures == 0:
        return 1.0
    counts = np.array([*shares, max(0.0, 1 - sum(shares))]) * pictures + 0.5
    chances = counts / counts.sum()
    drawn = rng.multinomial(pictures, chances, size=_RESAMPLES) / pictures
    return float(np.quantile(np.abs(drawn - chances).sum(axis=1) / 2, CONFIDENCE))


def _by_chance(targets: Sequence[float], pictures: int, rng: np.random.Generator) -> float:
    """The mean deviation of so many pictures drawn with exactly the wanted shares."""
    if pictures == 0:
        return 1.0
    shares = rng.multinomial(pictures, np.array(targets) / sum(targets), size=_RESAMPLES) / pictures
    return float((np.abs(shares - np.array(targets)).sum(axis=1) / 2).mean())


def _score(
    name: str, value: float, resampled: Float[np.ndarray[Any, Any], " resamples"], count: int
) -> Score:
    low, high = np.quantile(resampled, _TAILS)
    return Score(
        name=name, value=value, low=min(float(low), value), high=max(float(high), value), count=count
    )
