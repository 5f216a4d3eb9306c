"""Kinds of values that recipes use in several places: templates, layer ranges, seeds."""

import re
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

_MOST_SEEDS = 10_000
_RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")


def one_placeholder(template: str) -> str:
    """The template, when it holds ``{}`` exactly once.

    Raises:
        ValueError: otherwise, since the concept's place in the prompt is then not defined.
    """
    if template.count("{}") != 1:
        raise ValueError(
            f"template {template!r} holds {{}} {template.count('{}')} times; expected exactly once"
        )
    return template


def layer_numbers(value: object) -> object:
    """Layers as ascending numbers, from a list or from text such as ``0-10`` or ``0-3,7``.

    Raises:
        ValueError: when the text is no such range, or a layer is named twice.
    """
    if isinstance(value, str):
        value = [number for part in value.split(",") for number in _numbers(part.strip())]
    if not isinstance(value, list):
        raise ValueError("expected a list of layers, or text such as 0-10")
    if all(type(number) is int for number in value):
        if len(set(value)) != len(value):
            raise ValueError("a layer is named twice; name each once")
        value = sorted(value)
    return tuple(value)


def seed_numbers(value: object) -> object:
    """Seeds from a list, or a count: ``4`` means seeds 0, 1, 2, 3.

    Raises:
        ValueError: when the count is below 1 or beyond any use.
    """
    if type(value) is int:
        if not 1 <= value <= _MOST_SEEDS:
            raise ValueError(f"found {value} seeds, expected 1 to {_MOST_SEEDS}")
        return tuple(range(value))
    return tuple(value) if isinstance(value, list) else value


def _numbers(part: str) -> list[int]:
    match = _RANGE.fullmatch(part)
    first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
    if first > last:
        raise ValueError(f"{part!r} is no range of layers; expected for example 0-10 or 7")
    return list(range(first, last + 1))


Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Left: TypeAlias = Annotated[float, Field(ge=-1, lt=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Phrase: TypeAlias = Annotated[str, StringConstraints(pattern=r"\S")]
Template: TypeAlias = Annotated[str, AfterValidator(one_placeholder)]
Timestep: TypeAlias = Annotated[int, Field(ge=0, le=999)]
Layers: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(min_length=1),
    BeforeValidator(layer_numbers, json_schema_input_type=list[int] | str),
]
Seeds: TypeAlias = Annotated[
    tuple[Seed, ...],
    Field(min_length=1),
    BeforeValidator(seed_numbers, json_schema_input_type=list[int] | int),
]
