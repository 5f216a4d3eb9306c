"""How a look is learned: the knobs, their defaults, and what was published."""

from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias, get_args

from surgery.errors import MethodError, raise_all
from surgery.methods.training import LoopSettings, loop_faults
from surgery.record import JSON

Form: TypeAlias = Literal["lora", "full"]
Layers: TypeAlias = Literal["attention", "linear", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(LoopSettings):
    """What is trained, how long, and when it stops.

    Attributes:
        form: ``lora`` trains factors beside the layers; ``full`` all weights of the U-Net but those of its
            cross-attention and the norms before it.
        rank: Of the factors.
        layers: Which layers have factors: those of self-attention, all ``linear`` ones outside of
            cross-attention, or ``all`` with the convolutions of the blocks.
        batch: Noisy pictures behind each update.
        micro_batch: Of them in one pass.
        mirrored: Whether every other picture is seen from the left on average.
        held_out: Share of the pictures that are not trained on and say when to stop; 0: none.
        seed: Of the factors, the order and all noise.
    """

    form: Form = "lora"
    rank: int = 16
    layers: Layers = "all"
    batch: int = 16
    micro_batch: int = 16
    mirrored: bool = True
    held_out: float = 0.1
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
    faults = [
        f"{name} is {getattr(settings, name)}; expected 1 or more."
        for name in ("rank", "batch", "micro_batch")
        if getattr(settings, name) < 1
    ]
    faults += [
        f"{name} is {getattr(settings, name)!r}; expected {' or '.join(allowed)}."
        for name, allowed in (("form", get_args(Form)), ("layers", get_args(Layers)))
        if getattr(settings, name) not in allowed
    ]
    if not 0 <= settings.held_out < 1:
        faults.append(f"held_out is {settings.held_out}; expected a share from 0 to below 1.")
    raise_all(MethodError, [*faults, *loop_faults(settings)])


def as_json(settings: TrainSettings) -> dict[str, JSON]:
    """The settings as plain data, for keys and reports."""
    return dict(asdict(settings))
