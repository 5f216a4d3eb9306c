"""A measured effect as a table to read and as plain data for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from surgery.evaluate.effect import EditEffect
from surgery.record import JSON, Score

#: What each score says, in the order of the table.
MEANING: Final[Mapping[str, str]] = {
    "old_before": "edited prompts show the old concept, before",
    "old_after": "edited prompts show the old concept, after",
    "new_before": "edited prompts show the new concept, before",
    "new_after": "edited prompts show the new concept, after",
    "destination": "destination prompts show the new concept, before",
    "reached": "new concept after, relative to the destination prompts",
    "forgotten": "old concept gone, relative to before",
    "held_out_before": "held-out prompts show their concept, before",
    "held_out_after": "held-out prompts show their concept, after",
    "held_out_change": "held-out prompts, change in points",
    "held_out_worst": "the worst 5 % of them (one at least), change in points",
    "moved": "moved from the same seed's picture (1: as far as another seed's)",
    "frechet": "Fréchet distance from the pictures before",
    "frechet_drawings_before": "Fréchet distance from the drawings, before",
    "frechet_drawings_after": "Fréchet distance from the drawings, after",
}
_POINTS: Final = frozenset({"held_out_change", "held_out_worst", "holdout_delta"})
_NUMBERS: Final = frozenset(
    {"moved", "frechet", "frechet_drawings_before", "frechet_drawings_after", "h_o", "h_c"}
)
# a held-out phrase counts as changed when chance alone is rarer than that
_LEVEL: Final = 0.05


def evaluation_text(headlines: Sequence[Score], sections: Mapping[str, EditEffect], phrases: bool) -> str:
    """Several sections as plain text, the papers' numbers first."""
    parts = []
    if headlines:
        head = ("", "", "95 % interval", "pictures")
        rows = [(s.name, _value(s), _interval(s), str(s.count)) for s in headlines]
        parts.append(aligned([head, *rows]))
    for name, effect in sections.items():
        parts.append(f"== {name}\n\n{_tables(effect, phrases)}{_held_out_notes(effect)}")
    parts += dict.fromkeys(_small_print(effect) for effect in sections.values())
    return "\n\n".join(parts)


def _held_out_notes(effect: EditEffect) -> str:
    """The held-out phrases whose change is more than chance, and what the pictures could have seen."""
    rows = [row for row in effect.held_out if row.chance < _LEVEL]
    listed = ", ".join(f"{r.probe.subject} ({percent(r.before)} to {percent(r.after)})" for r in rows)
    changed = f"Changed beyond chance, corrected for {len(effect.held_out)} phrases: {listed}."
    notes = [changed if rows else "", effect.advice]
    return "".join(f"\n{note}" for note in notes if note)


def as_text(effect: EditEffect, phrases: bool = True) -> str:
    """The effect as plain text: all scores with their intervals, then (``phrases``) each phrase by itself."""
    return f"{_tables(effect, phrases)}\n\n{_small_print(effect)}"


def _tables(effect: EditEffect, phrases: bool) -> str:
    scores = [score for name in MEANING if (score := effect.score(name)) is not None]
    rows = [("", "", "95 % interval", "pictures")]
    rows += [(MEANING[score.name], _value(score), _interval(score), str(score.count)) for score in scores]
    parts = [aligned(rows)]
    if phrases and effect.changes:
        parts.append(aligned(_change_rows(effect)))
    if phrases and effect.held_out:
        parts.append(aligned(_held_out_rows(effect)))
    return "\n\n".join(parts)


def as_dict(effect: EditEffect) -> dict[str, JSON]:
    """The effect as plain data; shares are 0 to 1."""
    return {
        "scores": {
            score.name: {key: value for key, value in asdict(score).items() if key != "name"}
            for score in effect.scores
        },
        "changes": [
            {
                "subject": row.change.subject,
                "title": row.change.title,
                "old_before": row.old_before,
                "old_after": row.old_after,
                "new_before": row.new_before,
                "new_after": row.new_after,
                "destination": row.destination,
            }
            for row in effect.changes
        ],
        "held_out": [
            {"subject": row.probe.subject, "before": row.before, "after": row.after, "chance": row.chance}
            for row in effect.held_out
        ],
        "judge": {"name": effect.judge, "accuracy": dict(effect.judge_accuracy)},
        "sampling": asdict(effect.sampling),
        "advice": effect.advice,
    }


def _change_rows(effect: EditEffect) -> Sequence[Sequence[str]]:
    head = ("edited", "old before", "old after", "new before", "new after", "destination")
    return [head] + [
        (
            row.change.title,
            percent(row.old_before),
            percent(row.old_after),
            percent(row.new_before),
            percent(row.new_after),
            percent(row.destination),
        )
        for row in effect.changes
    ]


def _held_out_rows(effect: EditEffect) -> Sequence[Sequence[str]]:
    head = ("held out", "before", "after")
    return [head] + [(r.probe.subject, percent(r.before), percent(r.after)) for r in effect.held_out]


def _small_print(effect: EditEffect) -> str:
    questions = effect.judge_accuracy.items()
    accuracy = ", ".join(f"{name.replace('_', ' ')} {percent(value)}" for name, value in questions)
    knobs = effect.sampling
    right = f"itself right in: {accuracy}" if accuracy else "whose own accuracy nobody has measured"
    skipped = f", clip-skip {knobs.clip_skip + 1}" if knobs.clip_skip else ""
    skipped += ", long prompts in pieces" if knobs.in_pieces else ""
    return (
        f"Pictures for each prompt: {knobs.samples}; {knobs.steps} steps, "
        f"guidance {knobs.guidance:g}, seed {knobs.seed}{skipped}. "
        f"Judge {effect.judge}, {right}."
    )


def _value(score: Score) -> str:
    if score.name in _NUMBERS:
        return f"{score.value:.3f}"
    return f"{100 * score.value:+.1f}" if score.name in _POINTS else f"{100 * score.value:.1f} %"


def _interval(score: Score) -> str:
    if score.name in _NUMBERS:
        return f"{score.low:.3f} to {score.high:.3f}"
    sign = "+" if score.name in _POINTS else ""
    return f"{100 * score.low:{sign}.1f} to {100 * score.high:{sign}.1f}"


def percent(share: float | None) -> str:
    """A share as whole per cent; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
