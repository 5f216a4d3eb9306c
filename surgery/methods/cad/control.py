"""What a mask does to a concept on noise it was not made from, and what random masks of its size do."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.anatomy import weights_of
from surgery.diffusion import Models
from surgery.methods.cad.gradients import MICRO_BATCH, measured, predictions
from surgery.methods.cad.masks import ComponentMask, masked, random_mask
from surgery.methods.cad.nouns import Measured, Pairs
from surgery.record import JSON

RANDOM_MASKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A concept on other noise: unedited, with its mask, and with random masks of its size.

    Attributes:
        before: The concept's measure; ``after`` with the mask, ``random`` with each of the random ones.
        left: How much of the concept's direction the masked model still goes along (``left_of``); None of
            ``denoise``, which has no base prompt. A mask that was grown to a share was so on other pairs.
        random_left: The same with each of the random masks.
    """

    before: Measured
    after: Measured
    random: tuple[Measured, ...]
    left: float | None = None
    random_left: tuple[float, ...] = ()

    @property
    def change(self) -> float:
        """Of the measure by the mask, as a share of the unedited one's size; below 0 is less of it."""
        return self._change(self.after.mean)

    @property
    def effect(self) -> float:
        """What tells whether a mask erases: the change of ``left``, or where there is none the measure's.

        The measure of a mask that erases well may rise, since predictions move away from the base prompt's
        across the concept's direction; what is left along it falls.
        """
        return self.change if self.left is None else self.left - 1

    @property
    def random_effect(self) -> float:
        """The same of the random masks, on average."""
        return sum(self._random_effects()) / len(self.random)

    @property
    def random_size(self) -> float:
        """How large the random masks' effects are on average, up or down."""
        return sum(abs(one) for one in self._random_effects()) / len(self.random)

    def line(self) -> str:
        """For people: what the mask does, and what random ones do."""
        if self.left is None:
            return (
                f"changes its measure by {100 * self.effect:+.0f} %, random ones by "
                f"{100 * self.random_effect:+.0f} %"
            )
        return f"leaves {percent(self.left)} of its direction, random ones {percent(1 + self.random_effect)}"

    def as_json(self) -> dict[str, JSON]:
        """As plain data."""
        return {
            "measure": self.before.mean,
            "masked": self.after.mean,
            "random": [one.mean for one in self.random],
            "change": self.change,
            "left": self.left,
            "random_left": list(self.random_left),
            "effect": self.effect,
            "random_effect": self.random_effect,
            "random_size": self.random_size,
            "pairs": len(self.before.values),
        }

    def _random_effects(self) -> list[float]:
        if self.left is None:
            return [self._change(one.mean) for one in self.random]
        return [one - 1 for one in self.random_left]

    def _change(self, mean: float) -> float:
        return (mean - self.before.mean) / max(abs(self.before.mean), 1e-30)


class HeldOut:
    """Pairs of one concept that masks are tried on; the unedited model's predictions are made once."""

    def __init__(self, models: Models, pairs: Pairs, micro_batch: int = 2 * MICRO_BATCH) -> None:
        self._models, self._pairs, self._micro_batch = models, pairs, micro_batch
        self._usual = predictions(models, pairs, {}, micro_batch)

    def left(self, mask: ComponentMask, strength: float) -> float:
        """How much of the concept's direction is left with a mask.

        Raises:
            MethodError: when predictions are not finite.
        """
        predicted = self._masked(mask, strength)
        measured(self._pairs, predicted)
        return left_of(self._pairs, self._usual, predicted)

    def control(self, mask: ComponentMask, strength: float, generator: torch.Generator) -> Control:
        """What a mask does, and what random ones of the same size do.

        Targets stay those of the unedited model, so that the mask's effect on the base prompt does not enter.

        Source: 9 of the study; the random baseline of 8.5.
        """
        random = [self._masked(random_mask(mask, generator), strength) for _ in range(RANDOM_MASKS)]
        after, pairs = self._masked(mask, strength), self._pairs
        apart = pairs.towards > 0
        return Control(
            before=measured(pairs, self._usual),
            after=measured(pairs, after),
            random=tuple(measured(pairs, one) for one in random),
            left=left_of(pairs, self._usual, after) if apart else None,
            random_left=tuple(left_of(pairs, self._usual, one) for one in random) if apart else (),
        )

    def _masked(self, mask: ComponentMask, strength: float) -> Tensor:
        return predictions(self._models, self._pairs, self._weights(mask, strength), self._micro_batch)

    def _weights(self, mask: ComponentMask, strength: float) -> Mapping[str, Tensor]:
        weights = weights_of(self._models, tuple(mask.places))
        return {
            name: masked(weights[name].detach().cpu(), places, strength)
            for name, places in mask.places.items()
        }


def percent(share: float) -> str:
    """A share as whole percents, never -0."""
    return f"{round(100 * share)} %"


def left_of(pairs: Pairs, usual: Tensor, predicted: Tensor) -> float:
    """How far predictions still go from the base prompt's towards the concept, as a share of the unedited.

    Σ⟨ε' − ε_base, ε − ε_base⟩ / Σ‖ε − ε_base‖² over all pairs: 1 where nothing changed, 0 where the concept's
    prompt leads no further into its own direction than the base prompt, below 0 where it leads away from it.
    """
    base = pairs.target.double()
    way = usual.double() - base
    return float(((predicted.double() - base) * way).sum() / way.square().sum().clamp_min(1e-30))
