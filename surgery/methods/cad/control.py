"""What a mask does to a concept's measure on noise it was not made from, and what a random one does."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.anatomy import weights_of
from surgery.diffusion import Models
from surgery.methods.cad.gradients import MICRO_BATCH, measure
from surgery.methods.cad.masks import ComponentMask, masked, random_mask
from surgery.methods.cad.nouns import Measured, Pairs
from surgery.record import JSON

RANDOM_MASKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A concept's measure on other noise: unedited, with its mask, and with random masks of its size."""

    before: Measured
    after: Measured
    random: tuple[Measured, ...]

    @property
    def change(self) -> float:
        """Of the measure by the mask, as a share of the unedited one's size; below 0 is less of it."""
        return self._change(self.after.mean)

    @property
    def random_change(self) -> float:
        """The same of the random masks, on average."""
        return self._change(sum(one.mean for one in self.random) / len(self.random))

    @property
    def random_size(self) -> float:
        """How large the random masks' changes are on average, up or down."""
        return sum(abs(self._change(one.mean)) for one in self.random) / len(self.random)

    def _change(self, mean: float) -> float:
        return (mean - self.before.mean) / max(abs(self.before.mean), 1e-30)

    def as_json(self) -> dict[str, JSON]:
        """As plain data."""
        return {
            "measure": self.before.mean,
            "masked": self.after.mean,
            "random": [one.mean for one in self.random],
            "change": self.change,
            "random_change": self.random_change,
            "random_size": self.random_size,
            "pairs": len(self.before.values),
        }


def control(
    models: Models,
    pairs: Pairs,
    mask: ComponentMask,
    strength: float,
    generator: torch.Generator,
    *,
    micro_batch: int = 2 * MICRO_BATCH,
) -> Control:
    """The measure of ``pairs`` without and with a mask, and with random ones of the same size.

    Targets stay those of the unedited model, so that the mask's effect on the base prompt does not enter.

    Source: 9 of the study; the random baseline of 8.5.
    """
    before = measure(models, pairs, {}, micro_batch)
    # one set of changed weights at a time
    after = measure(models, pairs, _weights(models, mask, strength), micro_batch)
    random = [
        measure(models, pairs, _weights(models, random_mask(mask, generator), strength), micro_batch)
        for _ in range(RANDOM_MASKS)
    ]
    return Control(before=before, after=after, random=tuple(random))


def _weights(models: Models, mask: ComponentMask, strength: float) -> Mapping[str, Tensor]:
    weights = weights_of(models, tuple(mask.places))
    return {
        name: masked(weights[name].detach().cpu(), places, strength) for name, places in mask.places.items()
    }
