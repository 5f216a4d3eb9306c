"""Finished parts of a bench, each in a file of its own, and the mean over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgery.checkpoint.atomic import atomic_file, write_bytes

RESAMPLED: Final = 2000


def kept(place: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The data in a file; made now, and kept there, where it is missing."""
    if not place.is_file():
        text = json.dumps(_short(make()))
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(place, overwrite=True) as temporary:
            write_bytes(temporary, [text.encode()])
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def _short(value: Any) -> Any:
    """The same data, numbers with nine digits: cells are kept under version control."""
    match value:
        case float():
            return float(f"{value:.9g}")
        case dict():
            return {name: _short(one) for name, one in value.items()}
        case list() | tuple():
            return [_short(one) for one in value]
    return value


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean in percent, the values (one a concept) drawn anew."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(values), (RESAMPLED, len(values)))
    low, high = np.percentile(100 * np.array(values)[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)
