"""How methods speak of concepts, where they all do it alike."""

from collections.abc import Sequence
from typing import Final

TEMPLATES: Final = ("{}", "a photo of {}", "an image of {}")
"""Prompts that show a concept, where neither the recipe nor the method has others."""


def repeats(names: Sequence[str]) -> list[str]:
    """What is wrong with names that come more than once."""
    return [
        f"{name!r} is named {names.count(name)} times; expected each concept once. Leave one out."
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
