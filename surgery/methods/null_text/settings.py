"""How a look is learned: the knobs, their defaults, and what was published."""

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Final, Literal, TypeAlias, get_args

from surgery.errors import MethodError, raise_all
from surgery.record import JSON

Form: TypeAlias = Literal["lora", "full"]
Layers: TypeAlias = Literal["attention", "linear", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What is trained, how long, and when it stops.

    Attributes:
        form: ``lora`` trains factors beside the layers; ``full`` all weights of the U-Net but those of its
            cross-attention.
        rank: Of the factors.
        layers: Which layers have factors: those of self-attention, all ``linear`` ones outside of
            cross-attention, or ``all`` with the convolutions of the blocks.
        steps: Updates of the weights, at most.
        batch: Noisy pictures behind each update.
        micro_batch: Of them in one pass.
        learning_rate: Of AdamW, constant.
        weight_decay: Of AdamW.
        clip: Longest gradient of an update.
        average: Decay of the moving average whose weights are the result; it begins faster. 0: none.
        mirrored: Whether every other picture is seen from the left on average.
        held_out: Share of the pictures that are not trained on and say when to stop; 0: none.
        check_every: Updates between two looks at the held-out loss.
        patience: Looks without a better loss before training stops; the best weights are the result.
        seed: Of the factors, the order and all noise.
    """

    form: Form = "lora"
    rank: int = 16
    layers: Layers = "all"
    steps: int = 1000
    batch: int = 16
    micro_batch: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.995
    mirrored: bool = True
    held_out: float = 0.1
    check_every: int = 100
    patience: int = 5
    seed: int = 0


PUBLISHED: Final = TrainSettings(
    form="full", steps=1_000_000, batch=32, learning_rate=1e-5, average=0.9999, held_out=0.0
)
"""As released, but for the 8-bit optimiser: the ceiling of steps, not the number behind the tables."""


def check_settings(settings: TrainSettings) -> None:
    """Refuse settings that cannot be carried out, all faults at once.

    Raises:
        MethodError: naming each.
    """
    counts = ("rank", "steps", "batch", "micro_batch", "check_every", "patience")
    faults = [
        f"{name} is {getattr(settings, name)}; expected 1 or more."
        for name in counts
        if getattr(settings, name) < 1
    ]
    faults += [
        f"{name} is {getattr(settings, name)!r}; expected {' or '.join(allowed)}."
        for name, allowed in (("form", get_args(Form)), ("layers", get_args(Layers)))
        if getattr(settings, name) not in allowed
    ]
    faults += [
        f"{name} is {getattr(settings, name)}; expected a share from 0 to below 1."
        for name in ("average", "held_out")
        if not 0 <= getattr(settings, name) < 1
    ]
    faults += [
        f"{name} is {getattr(settings, name)}; expected a number above 0."
        for name in ("learning_rate", "clip")
        if not (isfinite(getattr(settings, name)) and getattr(settings, name) > 0)
    ]
    if not isfinite(settings.weight_decay) or settings.weight_decay < 0:
        faults.append(f"weight_decay is {settings.weight_decay}; expected 0 or more.")
    raise_all(MethodError, faults)


def as_json(settings: TrainSettings) -> dict[str, JSON]:
    """The settings as plain data, for keys and reports."""
    return dict(asdict(settings))
