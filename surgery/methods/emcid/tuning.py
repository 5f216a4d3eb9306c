"""Which mixture comes next: what was drawn with the earlier ones, and a curve through it. No pictures here.

A mixture moves the text's features along a line between the destinations, and noise decides each picture:
the shares follow about a softmax that is linear in the weights (for two destinations a logistic curve).
Rounds use the same prompts and seeds, so that they differ by the mixture alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_softmax

Vector = Float[np.ndarray[Any, Any], " groups"]

_Z: Final = 1.959963984540054  # two-sided 95 %
_EPSILON: Final = 1e-9  # 0.52 - 0.5 is a little more than 0.02
# what is expected of a curve before anything was drawn: log odds per weight, and how far it may be off (as a
# factor e^spread); the same of the log odds at no weight
_SLOPE, _SLOPE_SPREAD, _BIAS_SPREAD = 1.6, 0.7, 4.0
_NEAR: Final = 0.5  # mixtures so far apart tell e times less about each other
_FARTHEST: Final = 1.0  # that a round goes from the best one so far
_LEAST: Final = 0.02  # that a round moves at least
_FLOOR: Final = 0.005  # a share of nothing would ask for infinite log odds


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one mixture drew: pictures of each group, and of people in none of the groups (``others``)."""

    weights: tuple[float, ...]
    counts: tuple[int, ...]
    others: int = 0

    @property
    def total(self) -> int:
        """Pictures that say something."""
        return sum(self.counts) + self.others

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each group among them; 0 where there are none."""
        return tuple(count / max(1, self.total) for count in self.counts)

    def off(self, goal: Sequence[float]) -> float:
        """The largest distance of a share from its goal; 1 without a picture that says something."""
        if self.total == 0:
            return 1.0
        return max(abs(share - aim) for share, aim in zip(self.shares, goal, strict=True))


def half_width(share: float, count: int) -> float:
    """Half the width of Wilson's 95 % interval for a share of ``count`` pictures; 1 without any.

    Source: Wilson 1927.
    """
    if count == 0:
        return 1.0
    square = _Z * _Z / count
    return _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)


def pictures_needed(tolerance: float, widest: float) -> int:
    """The least number of pictures with which a round can arrive, whatever it shows.

    One picture more or less is at most ``tolerance``; no interval is wider than ``widest`` to either side.
    """
    count = max(1, math.ceil(1 / tolerance - _EPSILON))
    guess = max(count, math.floor(0.25 * (_Z / widest) ** 2 - _Z * _Z) - 1)
    while half_width(0.5, guess) > widest:
        guess += 1
    return guess


def arrived(seen: Round, goal: Sequence[float], tolerance: float, widest: float) -> bool:
    """Whether every share is within the tolerance, and known to within ``widest``."""
    known = max(half_width(share, seen.total) for share in seen.shares) <= widest + _EPSILON
    return known and seen.off(goal) <= tolerance + _EPSILON


def best(rounds: Sequence[Round], goal: Sequence[float]) -> Round:
    """The round that came closest; of equals the first."""
    return min(rounds, key=lambda seen: seen.off(goal))


def next_weights(goal: Sequence[float], rounds: Sequence[Round], reach: float = 1.0) -> tuple[float, ...]:
    """The mixture to try next; weights add up to 1 and lie between -``reach`` and 1 + ``reach``.

    The first round has the goal's own shares. Later ones are where the likeliest curve through the rounds
    crosses the goal, near the best of them; between two destinations, also inside of what brackets the goal.

    Source: own; 7, idea 17 of the study (secant and bracket, with a curve in place of the secant).
    """
    if not rounds:
        return tuple(goal)
    centre = np.full(len(goal), 1 / len(goal))
    here = np.array(best(rounds, goal).weights)
    wanted = _crossing(goal, rounds)
    step = wanted - here
    step *= min(1.0, _FARTHEST / max(_distance(step), 1e-12))
    aim = here + step
    if len(goal) == 2:
        aim[0] = _bracketed(float(aim[0]), goal[0], rounds)
        aim[1] = 1 - aim[0]
    away = aim - centre
    room = np.where(away > 0, 1 + reach - centre, reach + centre) / np.maximum(np.abs(away), 1e-12)
    found = centre + away * min(1.0, float(room.min()))
    return tuple(float(weight) for weight in found)


def _distance(step: Vector) -> float:
    """Of two mixtures; for two destinations the change of either weight."""
    return float(np.linalg.norm(step)) / math.sqrt(2)


def _crossing(goal: Sequence[float], rounds: Sequence[Round]) -> Vector:
    """Where softmax(b + s f) is the goal, with the likeliest b and s > 0; solved with Σ f = 1."""
    smooth = np.array(goal) + _FLOOR
    aim = np.log(smooth / smooth.sum())
    tried = np.array([seen.weights for seen in rounds])
    near = np.exp(-np.array([(_distance(row - best(rounds, goal).weights) / _NEAR) ** 2 for row in tried]))
    # half a picture each: no share is known to be nothing
    counts = near[:, None] * (np.array([seen.counts for seen in rounds]) + 0.5)
    expected = aim - _SLOPE * np.array(goal)

    def unlikely(curve: Vector) -> float:
        odds = log_softmax(curve[:-1] + np.exp(curve[-1]) * tried, axis=1)
        priors = (((curve[:-1] - expected) / _BIAS_SPREAD) ** 2).sum()
        priors += ((curve[-1] - math.log(_SLOPE)) / _SLOPE_SPREAD) ** 2
        return float(-(counts * odds).sum() + priors / 2)

    curve = minimize(unlikely, np.array([*expected, math.log(_SLOPE)]), method="BFGS").x
    weights = (aim - curve[:-1]) / math.exp(curve[-1])
    return np.asarray(weights + (1 - weights.sum()) / len(weights))


def _bracketed(weight: float, goal: float, rounds: Sequence[Round]) -> float:
    """The weight, moved to the middle of the bracket where it lies outside, and away from what was tried."""
    low = max((seen.weights[0] for seen in rounds if seen.shares[0] < goal), default=-math.inf)
    high = min((seen.weights[0] for seen in rounds if seen.shares[0] > goal), default=math.inf)
    if low >= high:  # the other concepts' mixtures moved in between, and with them the curve
        return weight
    if math.isfinite(low) and math.isfinite(high):
        margin = min(_LEAST, (high - low) / 4)
        return weight if low + margin <= weight <= high - margin else (low + high) / 2
    return min(max(weight, low + _LEAST), high - _LEAST)
