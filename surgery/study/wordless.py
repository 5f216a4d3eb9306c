"""Patches that were learned without words: how their headers say so, and who must be told."""

import logging
from collections.abc import Iterator, Mapping
from typing import Final

from surgery.patch import Patch
from surgery.patch.compose import origins
from surgery.record import JSON

_log = logging.getLogger(__name__)

LOOK: Final = "null_text"
"""Under which the provenance of a patch that was learned without words says how to draw with it."""


def looks_in(patch: Patch) -> Iterator[Mapping[str, JSON]]:
    """What the headers of looks say that this patch is, or was composed of."""
    for told in origins(patch):
        look = told.get(LOOK)
        if isinstance(look, Mapping):
            yield look


def warn_of_prompts(patch: Patch, name: object) -> None:
    """Say that prompts are outside of what a patch knows, where it was learned without words."""
    if any(True for _ in looks_in(patch)):
        _log.warning(
            "%s was learned without words, and a prompt is outside of what it knows; expected generalised "
            "guidance, which asks it without words beside the unedited checkpoint (guide.gcfg in recipes).",
            name,
        )
