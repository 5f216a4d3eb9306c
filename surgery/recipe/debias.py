"""What a recipe says to debias concepts: shares of attributes' values, and how the mixture is found."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from surgery.recipe.model import Part
from surgery.recipe.parameters import Count, NotNegative, Phrase, Share, Template

_SLACK = 1e-3  # thirds written as 0.333 add up


def equally(value: object) -> object:
    """A list of values as values with equal shares; a mapping as it is.

    Raises:
        ValueError: when a value is named twice.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return value
    if len(set(value)) != len(value):
        raise ValueError("a value is named twice; name each once")
    return {name: 1 / len(value) for name in value}


def whole(shares: dict[str, float]) -> dict[str, float]:
    """The shares scaled to add up to 1 exactly.

    Raises:
        ValueError: when they are further off than rounded decimals are, or there is but one value.
    """
    if len(shares) < 2:
        raise ValueError(f"found {len(shares)} values, expected two or more to choose among")
    total = sum(shares.values())
    if abs(total - 1) > _SLACK:
        raise ValueError(f"the shares add up to {total:g}, expected 1; a list of values means equal shares")
    return {name: share / total for name, share in shares.items()}


Shares: TypeAlias = Annotated[
    dict[Phrase, Share],
    BeforeValidator(equally, json_schema_input_type=dict[str, float] | list[str]),
    AfterValidator(whole),
]
"""Value → share; thirds may be written as 0.333, and are scaled to add up to 1."""


class Joint(Part):
    """The share of one combination of values."""

    values: dict[Phrase, Phrase] = Field(min_length=1)
    """Attribute → value, for every attribute of the concept."""
    share: Share
    """How often the combination is to be drawn."""


class Mixed(Part):
    """The weight of one combination of values in a mixture that is known beforehand."""

    values: dict[Phrase, Phrase] = Field(min_length=1)
    """Attribute → value, for every attribute of the concept."""
    weight: Annotated[float, Field(ge=-10, le=10)]
    """Part of this combination's destination in the mixture; all add up to 1."""


class Debias(Part):
    """How debiased concepts are asked for, and how their mixtures are found."""

    phrases: dict[Phrase, Template] = Field(default={})
    """Value → how a prompt asks for it, such as ``woman: female {}``; without one, ``woman {}``."""
    asked_as: Template = "a {}"
    """How the concept stands in the prompts that are drawn."""
    tuning: Literal["pictures", "distance", "none"] = "pictures"
    """Mixtures by drawing and judging, by equal distance in the text's features, or the shares themselves."""
    tolerance: Annotated[float, Field(ge=0.001, lt=1)] = 0.05
    """How far a share may be from its target."""
    interval: Annotated[float, Field(ge=0.01, lt=0.5)] = 0.1
    """Half the widest 95 % interval of a share that counts as known."""
    pictures: Count = 96
    """Pictures of each concept in a round; more where tolerance or interval need them."""
    rounds: Count = 8
    """Rounds of the tuning at most."""
    steps: Count = 10
    """Steps of the sampler in a round."""
    guidance: NotNegative | None = None
    """Guidance scale in a round; that of ``sample`` when left out."""
    templates: Literal["train", "test"] = "train"
    """Which of the checkpoint's templates the tuning draws; the measurement has its own."""
    reach: NotNegative = 1.0
    """How far a weight may lie outside of 0 to 1, for destinations that lean too little by themselves."""
    keep_explicit: bool = True
    """Whether the phrases that name a value outright are preserved."""
