"""Whether a change is more than chance: exact paired tests, and Holm's correction over many of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.special import bdtr

from surgery.evaluate.statistics import Groups, Hits


def p_value(before: Hits, after: Hits, groups: Groups | None = None) -> float:
    """How likely a change as large as this one, either way, would be if nothing had changed.

    Without ``groups`` each pair of pictures stands for itself: McNemar's exact test. With them whole phrases
    do: if nothing had changed, before and after of a phrase could be swapped, all its pictures together, and
    the net change of all phrases is held against every such swapping. With one picture for each phrase both
    are the same test. It takes six phrases for a probability below 0.05.

    Pairs need no more in common than the prompt: pictures of disjoint seeds are held against each other in
    the same way, only more of their pairs differ by chance.

    Source: McNemar 1947, exact as in Fagerland, Lydersen and Laake 2013; Fisher's randomisation test, its
    distribution by convolution as in Pagano and Tritchler 1983.
    """
    changes = after.astype(int) - before.astype(int)
    names, which = np.unique([] if groups is None else groups, return_inverse=True)
    if len(names) < 2:  # one group says nothing of others, and no group was asked for
        lost, won = int((changes < 0).sum()), int((changes > 0).sum())
        return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))
    net = np.zeros(len(names), int)
    np.add.at(net, which, changes)
    return _swapped(net)


def _swapped(net: Int[np.ndarray[Any, Any], " phrases"]) -> float:
    """The share of all sign changes of ``net`` whose sum is at least as far from zero as the sum itself."""
    most = int(np.abs(net).sum())
    chances = np.zeros(2 * most + 1)  # of each sum from -most to most
    chances[most] = 1
    for step in np.abs(net[net != 0]):
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2  # never far enough to come round
    sums = np.arange(-most, most + 1)
    return min(1.0, float(chances[np.abs(sums) >= abs(net.sum())].sum()))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The same probabilities, corrected for how many there are, each at its place.

    Calling every concept changed whose corrected probability is below 0.05 names an unchanged one in at most
    5 of 100 evaluations, however the concepts hang together.

    Source: Holm 1979: the smallest of k times k, the next times k - 1, and so on, never falling, at most 1.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return tuple(corrected.tolist())
