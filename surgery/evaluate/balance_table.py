"""A measured debiasing as a table to read and as plain data for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from surgery.evaluate.balance import BalanceEffect, DebiasEffect
from surgery.evaluate.table import aligned, percent
from surgery.record import JSON, Score

#: What each score says, in the order of the table.
MEANING: Final[Mapping[str, str]] = {
    "deviation_before": "mean deviation from the target shares, before",
    "deviation_after": "mean deviation from the target shares, after",
    "deviation_floor": "what chance leaves of an even model with as many pictures",
    "deviation_factor": "deviation before / after",
    "recognised_before": "concept recognised, before",
    "recognised_after": "concept recognised, after",
    "recognised_change": "concept recognised, change in points",
    "explicit_before": "prompts that ask outright show what they ask, before",
    "explicit_after": "prompts that ask outright show what they ask, after",
    "explicit_change": "prompts that ask outright, change in points",
}


def debias_text(effect: DebiasEffect) -> str:
    """The effect as plain text: all scores with intervals, then each phrase with its groups."""
    rows = [("", "", "95 % interval", "count")]
    rows += [
        (MEANING[score.name], _value(score, score.value), _interval(score), str(score.count))
        for name in MEANING
        if (score := effect.score(name)) is not None
    ]
    knobs = effect.sampling
    note = (
        f"{knobs.samples} pictures for each of {len(knobs.templates)} templates, "
        f"{effect.explicit_samples} where asked outright, {knobs.steps} steps, guidance {knobs.guidance:g}, "
        f"seed {knobs.seed}. Judge {effect.judge}."
    )
    return "\n\n".join([aligned(rows), aligned(_rows(effect.balances)), note])


def debias_dict(effect: DebiasEffect) -> dict[str, JSON]:
    """The effect as plain data; shares are 0 to 1."""
    return {
        "scores": {
            score.name: {key: value for key, value in asdict(score).items() if key != "name"}
            for score in effect.scores
        },
        "phrases": [asdict(balance) for balance in effect.balances],
        "judge": {"name": effect.judge, "accuracy": dict(effect.judge_accuracy)},
        "sampling": asdict(effect.sampling),
        "explicit_samples": effect.explicit_samples,
    }


def _rows(balances: Sequence[BalanceEffect]) -> list[Sequence[str]]:
    head = ("phrase", "group", "target", "before", "after", "interval", "pictures", "named before", "after")
    rows: list[Sequence[str]] = [head]
    for balance in balances:
        for number, group in enumerate(balance.groups):
            rows.append(
                (
                    balance.subject if number == 0 else "",
                    group.title,
                    percent(group.target),
                    percent(group.before.value),
                    percent(group.after.value),
                    f"{100 * group.after.low:.0f} to {100 * group.after.high:.0f}",
                    str(group.after.count),
                    percent(group.recognised_before),
                    percent(group.recognised_after),
                )
            )
    return rows


def _value(score: Score, value: float) -> str:
    if score.name == "deviation_factor":
        return f"{value:.1f}"
    sign = "+" if score.name.endswith("_change") else ""
    unit = " points" if score.name.startswith("deviation") else "" if sign else " %"
    return f"{100 * value:{sign}.1f}{unit}"


def _interval(score: Score) -> str:
    scale = 1 if score.name == "deviation_factor" else 100
    sign = "+" if score.name.endswith("_change") else ""
    return f"{scale * score.low:{sign}.1f} to {scale * score.high:{sign}.1f}"
