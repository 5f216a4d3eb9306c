"""How leaves move: the knobs of the loop that methods share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias, get_args

from surgery.record import JSON

Precision: TypeAlias = Literal["float32", "bfloat16"]
"""In which type products are taken; weights, gradients and averages are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How long, how fast, and when it stops.

    Attributes:
        steps: Updates of the leaves, at most.
        learning_rate: Of AdamW, constant.
        weight_decay: Of AdamW.
        clip: Longest gradient of an update.
        average: Decay of the moving average whose values are the result; it begins faster. 0: none.
        check_every: Updates between two looks at the held-out loss.
        patience: Looks without a better loss before it stops; the best values are the result.
        precision: In which type products are taken.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.995
    check_every: int = 100
    patience: int = 5
    precision: Precision = "float32"


def deciding(settings: Mapping[str, JSON]) -> dict[str, JSON]:
    """Of settings as plain data those that decide what an update does: all but how many there may be."""
    return {name: one for name, one in settings.items() if name not in ("steps", "patience")}


def loop_faults(settings: LoopSettings) -> Iterator[str]:
    """What cannot be carried out."""
    for name in ("steps", "check_every", "patience"):
        if getattr(settings, name) < 1:
            yield f"{name} is {getattr(settings, name)}; expected 1 or more."
    if not 0 <= settings.average < 1:
        yield f"average is {settings.average}; expected a share from 0 to below 1."
    for name in ("learning_rate", "clip"):
        if not (isfinite(getattr(settings, name)) and getattr(settings, name) > 0):
            yield f"{name} is {getattr(settings, name)}; expected a number above 0."
    if not isfinite(settings.weight_decay) or settings.weight_decay < 0:
        yield f"weight_decay is {settings.weight_decay}; expected 0 or more."
    if settings.precision not in get_args(Precision):
        yield f"precision is {settings.precision!r}; expected {' or '.join(get_args(Precision))}."
