"""A small valid recipe for the tests of this room."""

from typing import Any

from surgery.recipe import Recipe, parse_recipe

SMALL = """\
surgery: 1
base: pocket-sd
edits:
  - emcid:
      concepts:
        - {source: cat, destination: pizza}
        - {source: dog, destination: tree, weight: 2}
      offsets: {steps: 5, learning_rate: 0.1}
"""


def small(**overrides: Any) -> Recipe:
    """The small recipe; ``a__0__b=1`` overrides ``a[0].b``."""
    return parse_recipe(SMALL, overrides={_path(name): str(value) for name, value in overrides.items()})


def _path(name: str) -> str:
    parts = [f"[{part}]" if part.isdigit() else f".{part}" for part in name.split("__")]
    return "".join(parts).removeprefix(".")
