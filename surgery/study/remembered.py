"""Which edits a patch was made by: what it remembers, or what a recipe says."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from surgery.methods import Replacement, method
from surgery.patch import Patch
from surgery.recipe import Recipe, parse_recipe
from surgery.record import Finding
from surgery.study.words import plainly

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What was edited, which names were kept on purpose or edited ``beside`` that, and what says so."""

    recipes: tuple[Recipe, ...]
    asked: tuple[Replacement, ...]
    preserved: tuple[str, ...]
    beside: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def edits_of(patch: Patch, recipe: Recipe | None, other: Path) -> Edits:
    """What the patch remembers, or what ``recipe`` says; what it remembers beside that is not held out."""
    if recipe is None:
        return _told_by(recipes_of(patch.provenance), other)
    told = _told_by([recipe], other)
    try:
        also = _told_by([recipe, *recipes_of(patch.provenance)], other)
    except SurgeryError as error:  # the recipe that was given is the way out of one that no longer reads
        _log.info("what the patch remembers is passed over: %s", error)
        return told
    named = {plainly(one.source) for one in told.asked}
    beside = tuple(dict.fromkeys(one.source for one in also.asked if plainly(one.source) not in named))
    if not beside:
        return told
    message = (
        f"the recipe given does not name what the patch was made to edit: {', '.join(beside[:5])}"
        f"{' and others' if len(beside) > 5 else ''}. They are neither measured nor held out."
    )
    _log.warning("%s", message)
    finding = Finding(kind="not-measured", subject=str(other), message=message, severity="warning")
    aims = (one.destination for one in also.asked if one.destination)
    kept = dict.fromkeys([*told.preserved, *also.preserved, *aims])
    return replace(told, preserved=tuple(kept), beside=beside, findings=(finding,))


def _told_by(recipes: Sequence[Recipe], other: Path) -> Edits:
    if not recipes:
        raise SurgeryError(
            f"{other} does not say which edits were made; expected a patch that `surgery run` wrote, or one "
            "composed of such. Name the recipe of the edits: --recipe."
        )
    entries = [
        (one, name, entry)
        for one in recipes
        for edit in one.edits
        for name, entry in edit
        if entry is not None
    ]
    return Edits(
        recipes=tuple(recipes),
        asked=tuple(found for one, name, entry in entries for found in method(name).replacements(entry, one)),
        preserved=tuple(phrase for _, name, entry in entries for phrase in method(name).preserved(entry)),
    )


def suites_for(asked: Sequence[Replacement]) -> tuple[str, ...]:
    """What to ask of the edits when nobody said."""
    debiased = [bool(one.groups) for one in asked]
    return ("debias",) if all(debiased) else ("update", "debias") if any(debiased) else ("update",)


def recipes_of(provenance: Mapping[str, Any]) -> list[Recipe]:
    """The recipes that a patch came from, also those of the patches that it was composed of."""
    source, composed = provenance.get("recipe"), provenance.get("composed")
    found = []
    if isinstance(source, str):
        overrides = provenance.get("overrides") or {}
        found.append(parse_recipe(source, overrides=overrides, remembered=True))
    for member in composed if isinstance(composed, list) else ():
        inner = member.get("provenance") if isinstance(member, dict) else None
        found += recipes_of(inner) if isinstance(inner, dict) else []
    return found
