"""The few numbers that the field quotes, taken from the sections that were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from surgery.evaluate.effect import EditEffect
from surgery.evaluate.statistics import TAILS
from surgery.record import Score

_RESAMPLES: Final = 4_000

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
    erased, kept = sections.get("generalisation"), sections.get("held out")
    if erased is None or kept is None or not kept.held_out:
        return None
    parts = [_gone(erased), [row.after for row in kept.held_out]]
    if "aliases" in sections:
        parts.append(_gone(sections["aliases"]))
    filled = [np.asarray(part) for part in parts if part]
    if len(filled) < 2:
        return None
    return _harmonic(f"h_{'o' if len(filled) == 3 else 'c'}", filled)


def _gone(effect: EditEffect) -> list[float]:
    return [1 - row.old_after for row in effect.changes if row.old_after is not None]


def _harmonic(name: str, parts: Sequence[Float[np.ndarray[Any, Any], " phrases"]]) -> Score:
    """The harmonic mean of several means over phrases; the interval is of phrases drawn anew in each part."""
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [part[rng.integers(0, len(part), (_RESAMPLES, len(part)))].mean(axis=1) for part in parts], axis=1
    )
    low, high = np.quantile(_harmonic_mean(drawn), TAILS)
    value = float(_harmonic_mean(np.array([[part.mean() for part in parts]]))[0])
    return Score(
        name=name,
        value=value,
        low=min(value, float(low)),
        high=max(value, float(high)),
        count=sum(len(part) for part in parts),
    )


def _harmonic_mean(rows: Float[np.ndarray[Any, Any], "rows parts"]) -> Float[np.ndarray[Any, Any], " rows"]:
    with np.errstate(divide="ignore"):
        means: np.ndarray[Any, Any] = rows.shape[1] / (1 / rows).sum(axis=1)
    return means
