"""The few numbers that the field quotes, taken from the sections that were measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from surgery.evaluate.effect import EditEffect
from surgery.record import Score

#: Name of a headline → the section and the score that it is.
_PLAIN: Final[Mapping[str, tuple[str, str]]] = {
    "source_forget": ("efficacy", "forgotten"),
    "source2dest": ("efficacy", "reached"),
    "generalisation_source_forget": ("generalisation", "forgotten"),
    "generalisation_source2dest": ("generalisation", "reached"),
    "alias2dest": ("aliases", "reached"),
    "alias2dest_given": ("aliases given", "reached"),
    "holdout_delta": ("held out", "held_out_change"),
    "acc_e": ("generalisation", "old_after"),
    "acc_s": ("held out", "held_out_after"),
    "acc_g": ("aliases", "old_after"),
}


def headlines(sections: Mapping[str, EditEffect]) -> tuple[Score, ...]:
    """The scores by the names that papers give them, as far as their sections were measured.

    Source2Dest and Alias2Dest are divided by the unedited model's score on the destinations, Source Forget by
    its score on the sources. ``h_o`` is the harmonic mean of 1 - Acc_e, Acc_s and 1 - Acc_g; where no alias
    was measured it is that of the first two (H_c).

    Source: the metrics of arXiv 2403.13807 (ICEB) and of MACE, arXiv 2403.06135.
    """
    found = []
    for name, (section, score) in _PLAIN.items():
        measured = sections[section].score(score) if section in sections else None
        if measured is not None:
            found.append(replace(measured, name=name))
    overall = _overall(sections)
    return (*found, *([] if overall is None else [overall]))


def _overall(sections: Mapping[str, EditEffect]) -> Score | None:
    asked = {"generalisation": "old_after", "held out": "held_out_after", "aliases": "old_after"}
    found = {
        name: score
        for name, asked_score in asked.items()
        if name in sections and (score := sections[name].score(asked_score)) is not None
    }
    if "generalisation" not in found or "held out" not in found:
        return None
    parts = [score if name == "held out" else _gone(score) for name, score in found.items()]
    return _harmonic(f"h_{'o' if len(parts) == 3 else 'c'}", parts)


def _gone(score: Score) -> Score:
    return replace(score, value=1 - score.value, low=1 - score.high, high=1 - score.low)


def _harmonic(name: str, parts: Sequence[Score]) -> Score:
    """The harmonic mean of several shares, with an interval from theirs.

    It is their number by the sum of their inverses, and the interval of that sum has to either side the root
    of the squares of what each part can add or take.

    Source: for the sum, Zou and Donner 2008 (MOVER).
    """
    values, lows, highs = ([getattr(part, end) for part in parts] for end in ("value", "low", "high"))
    value = _harmonic_mean(values)
    if value == 0:
        low, high = 0.0, _harmonic_mean(highs)
    else:
        total = sum(1 / one for one in values)
        less = math.sqrt(sum((1 / one - 1 / end) ** 2 for one, end in zip(values, highs, strict=True)))
        more = math.inf
        if min(lows) > 0:
            more = math.sqrt(sum((1 / end - 1 / one) ** 2 for one, end in zip(values, lows, strict=True)))
        low, high = len(parts) / (total + more), len(parts) / (total - less)
    return Score(
        name=name,
        value=value,
        low=min(low, value),
        high=min(1.0, max(high, value)),
        count=sum(part.count for part in parts),
    )


def _harmonic_mean(values: Sequence[float]) -> float:
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0
