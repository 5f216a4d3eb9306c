"""What goes in: concepts and the models; and what is looked at: noisy pictures with their targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.anatomy import fill
from surgery.diffusion import derived_seed
from surgery.errors import MethodError, raise_all
from surgery.methods.concepts import TEMPLATES, repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class CadConcept:
    """One concept as prompts speak of it.

    Attributes:
        name: For people and keys.
        prompts: Prompts that show it; paths and pictures take turns.
        images: Own pictures of it, for the objective ``denoise``.
        seed: Of all its noise.
    """

    name: str
    prompts: tuple[str, ...]
    images: tuple[Path, ...] = ()
    seed: int = 0


PUBLISHED_TEMPLATES: Final = ("{}",)  # the bare name


def concepts_named(
    names: Sequence[str], templates: Sequence[str] = (), seed: int = 0
) -> tuple[CadConcept, ...]:
    """Concepts by their names, each with a seed of its own.

    Raises:
        MethodError: when a name comes twice, is empty, or a template has no one place for it.
    """
    faults = repeats([name.casefold() for name in names])
    faults += [
        f"{name!r} is no name of a concept; expected a word or more." for name in names if not name.strip()
    ]
    faults += [
        f"template {one!r} has {one.count('{}')} places for the name; expected one {{}}."
        for one in templates
        if one.count("{}") != 1
    ]
    raise_all(MethodError, faults)
    return tuple(
        CadConcept(
            name=name,
            prompts=tuple(fill(template, name) for template in templates or TEMPLATES),
            seed=derived_seed(seed, name),
        )
        for name in names
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Noisy pictures, and what the prediction for the concept's prompt is held against.

    Attributes:
        noisy: x_t as the U-Net sees it.
        timesteps: t of each.
        target: The prediction for the base prompt, or the noise (velocity) that was added.
        prompt: Which of ``prompts`` each belongs to.
        sample: Which draw each comes from: a path, two that start from one noise, or a picture.
        towards: 1 where the squared distance to the target is the concept's measure (``base_gap``), -1 where
            it is what the measure falls with (``denoise``).
    """

    noisy: Float[Tensor, "pairs channels height width"]
    timesteps: Int64[Tensor, " pairs"]
    target: Float[Tensor, "pairs channels height width"]
    prompt: Int64[Tensor, " pairs"]
    sample: Int64[Tensor, " pairs"]
    prompts: tuple[str, ...]
    towards: int = 1

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def samples(self) -> int:
        """Paths or pictures."""
        return len(self.sample.unique())

    def of_sample(self, number: int) -> "Pairs":
        """Those of one path or picture."""
        return self.select((self.sample == number).nonzero().flatten())

    def select(self, rows: Any) -> "Pairs":
        """Some of them."""
        return Pairs(
            noisy=self.noisy[rows],
            timesteps=self.timesteps[rows],
            target=self.target[rows],
            prompt=self.prompt[rows],
            sample=self.sample[rows],
            prompts=self.prompts,
            towards=self.towards,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A concept's measure over some pairs: the sum of squares of each, as a number for each pair."""

    values: Float[Tensor, " pairs"]
    timesteps: Int64[Tensor, " pairs"]
    sample: Int64[Tensor, " pairs"] = field(repr=False)

    @property
    def mean(self) -> float:
        """Over all pairs."""
        return float(self.values.double().mean())

    @property
    def deviation(self) -> float:
        """Of the means of the samples; nothing for a single one."""
        means = self.by_sample()
        return float(means.std()) if len(means) > 1 else 0.0

    def by_sample(self) -> Float[Tensor, " samples"]:
        """The mean of each path or picture, in float64."""
        numbers = self.sample.unique()
        return torch.stack([self.values[self.sample == number].double().mean() for number in numbers])

    def by_timestep(self) -> dict[int, float]:
        """The mean at each timestep, from noisy to clean."""
        steps = self.timesteps.unique().flip(0).tolist()
        return {step: float(self.values[self.timesteps == step].double().mean()) for step in steps}
