"""``--set edits[0].emcid.offsets.steps=50``: changes to a recipe from the command line."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from surgery.errors import RecipeError, raise_all
from surgery.recipe.document import Document, Place, read_value

_PATH = re.compile(r"[A-Za-z_]\w*(\[\d+\])*(\.[A-Za-z_]\w*(\[\d+\])*)*")
_PART = re.compile(r"([A-Za-z_]\w*)|\[(\d+)\]")


def overridden(document: Document, overrides: Mapping[str, str]) -> Document:
    """The document with each value replaced, labelled so that faults point to the ``--set`` at fault.

    Raises:
        RecipeError: when a path has no valid form or leads through a value that is no mapping or list.
            Whether its keys mean anything is for the schema to say.
    """
    value, labels, faults = deepcopy(document.value), dict(document.labels), []
    for path, text in overrides.items():
        try:
            place = parse_path(path)
            _assign(value, place, read_value(text))
        except RecipeError as error:
            faults.append(f"--set {path}: {error}")
            continue
        labels = {known: label for known, label in labels.items() if known[: len(place)] != place}
        labels[place] = f"--set {path}"
    raise_all(RecipeError, faults)
    return Document(name=document.name, value=value, labels=labels)


def parse_path(path: str) -> Place:
    """The place that ``edits[0].emcid.offsets.steps`` names.

    Raises:
        RecipeError: when it is no such path.
    """
    if not _PATH.fullmatch(path):
        raise RecipeError(
            f"{path!r} is no path in a recipe; expected for example edits[0].emcid.update.ridge."
        )
    return tuple(key or int(index) for key, index in _PART.findall(path))


def _assign(value: Any, place: Place, new: object) -> None:
    for part, following in zip(place, (*place[1:], None), strict=True):
        if isinstance(part, int):
            if not isinstance(value, list):
                raise RecipeError(f"[{part}] asks for a list, but the recipe has none there.")
            if part >= len(value):
                raise RecipeError(f"[{part}] is beyond the list's {len(value)} entries (counted from 0).")
        elif not isinstance(value, dict):
            raise RecipeError(f"{part!r} asks for a key, but the recipe has no mapping there.")
        if following is None:
            value[part] = new
            return
        if isinstance(part, str) and value.get(part) is None:
            value[part] = {}
        value = value[part]
