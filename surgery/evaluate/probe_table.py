"""Probes as plain data and as a table for people."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

from surgery.evaluate.probes import ProbeResult
from surgery.record import JSON

_COLUMNS: Final = (
    ("drift", "drift"),
    ("energy", "energy"),
    ("alignment", "aligned"),
    ("anchor alignment", "to new"),
    ("presence before", "present"),
    ("presence", "after"),
    ("presence without", "usual"),
    ("leak", "leak"),
    ("bystanders", "others"),
    ("bystanders worst", "worst"),
    ("fusion before", "fused"),
    ("fusion", "after"),
)


def probes_dict(results: Sequence[ProbeResult]) -> list[JSON]:
    """The results as plain data."""
    return [
        {
            "subject": one.subject,
            "scores": [asdict(score) for score in one.scores],
            "curves": {name: list(values) for name, values in one.curves.items()},
            "timesteps": list(one.timesteps),
            "leak": one.leak,
        }
        for one in results
    ]


def probes_text(results: Sequence[ProbeResult]) -> str:
    """A line for each phrase; intervals are in the data."""
    return "\n".join(_lines(results))


def _lines(results: Sequence[ProbeResult]) -> Iterator[str]:
    width = max(12, *(len(one.subject) for one in results))
    yield f"{'probes':{width}}" + "".join(f"{heading:>9}" for _, heading in _COLUMNS)
    for one in results:
        cells = []
        for name, _ in _COLUMNS:
            score = one.score(name)
            cells.append(f"{'-' if score is None else f'{score.value:.3f}':>9}")
        yield f"{one.subject:{width}}" + "".join(cells)
        if one.leak:
            yield f"{'':{width}}  most of it comes back through {one.leak!r}"
