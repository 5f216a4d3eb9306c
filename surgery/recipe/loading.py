"""From a file or shelf name to a checked recipe, with every fault reported at once."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from surgery.errors import RecipeError, SurgeryError, raise_all
from surgery.recipe.cad import cad_faults
from surgery.recipe.combinations import share_faults
from surgery.recipe.distill import distill_faults
from surgery.recipe.document import Document, Place, read_document
from surgery.recipe.emcid import Emcid
from surgery.recipe.faults import fault_lines, where
from surgery.recipe.files import missing_files
from surgery.recipe.guide import GuideRecipe, guide_faults
from surgery.recipe.overrides import overridden
from surgery.recipe.schema import Recipe
from surgery.shelf import recipe_names, recipe_path


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe at a path or of a shelf name, with ``overrides`` (path → YAML text) applied.

    Raises:
        RecipeError: listing all faults, each with file, line and key.
    """
    source = recipe_text(name_or_path)
    return parse_recipe(source, path=recipe_path(name_or_path), overrides=overrides)


def recipe_text(name_or_path: str | Path) -> str:
    """The text of the recipe at a path or of a shelf name, without a byte order mark.

    Raises:
        RecipeError: when there is no such file, or it is no text.
    """
    try:
        return recipe_path(name_or_path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{name_or_path}: byte {error.start} is no UTF-8. Save the recipe as UTF-8."
        ) from error
    except SurgeryError as error:
        raise RecipeError(str(error)) from error


def load_guide(name_or_path: str | Path, overrides: Mapping[str, str] | None = None) -> GuideRecipe:
    """The recipe of guidance at a path or of a shelf name, as ``load_recipe`` reads one of edits.

    Raises:
        RecipeError: listing all faults, each with file, line and key.
    """
    return parse_guide(recipe_text(name_or_path), path=recipe_path(name_or_path), overrides=overrides)


def load_any(name_or_path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe | GuideRecipe:
    """The recipe of either kind at a path or of a shelf name.

    Raises:
        RecipeError: listing all faults, each with file, line and key.
    """
    return parse_any(recipe_text(name_or_path), path=recipe_path(name_or_path), overrides=overrides)


def recipe_titles() -> dict[str, str]:
    """Title of each shipped recipe by its name on the shelf."""
    return {name: load_any(name).title for name in recipe_names()}


def parse_recipe(
    source: str,
    *,
    path: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    remembered: bool = False,
) -> Recipe:
    """The recipe that ``source`` spells; files it names are looked for beside ``path``.

    One that is only ``remembered``, by a patch that it made, may name files that are elsewhere now.

    Raises:
        RecipeError: listing all faults, each with file, line and key; also when it says how to draw.
    """
    document, recipe = _read(source, path, overrides, Recipe)
    found = [f"{where(document, place)}{message}" for place, message in _contradictions(recipe)]
    raise_all(RecipeError, [] if remembered else found)
    return recipe


def parse_guide(
    source: str, *, path: Path | None = None, overrides: Mapping[str, str] | None = None
) -> GuideRecipe:
    """The recipe of guidance that ``source`` spells, as ``parse_recipe`` reads one of edits.

    Raises:
        RecipeError: listing all faults, each with file, line and key; also when it says what to edit.
    """
    document, recipe = _read(source, path, overrides, GuideRecipe)
    found = [*missing_files(recipe), *guide_faults(recipe)]
    raise_all(RecipeError, [f"{where(document, at)}{message}" for at, message in found])
    return recipe


def parse_any(
    source: str, *, path: Path | None = None, overrides: Mapping[str, str] | None = None
) -> Recipe | GuideRecipe:
    """The recipe of either kind that ``source`` spells.

    Raises:
        RecipeError: listing all faults, each with file, line and key.
    """
    guides = is_guide(read_document(source, str(path) if path else "recipe"))
    return (parse_guide if guides else parse_recipe)(source, path=path, overrides=overrides)


Kind = TypeVar("Kind", Recipe, GuideRecipe)


def _read(
    source: str, path: Path | None, overrides: Mapping[str, str] | None, kind: type[Kind]
) -> tuple[Document, Kind]:
    document = read_document(source, str(path) if path else "recipe")
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{document.name}: holds no mapping; expected keys such as 'surgery', 'base', 'edits'."
        )
    document = overridden(document, overrides or {})
    _refuse_other_kind(document, kind)
    try:
        # through JSON, because pydantic's strict mode takes a JSON array, but no Python list, for a tuple
        recipe = kind.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        raise_all(RecipeError, fault_lines(error.errors(), document, kind))
        raise
    recipe._source, recipe._path, recipe._overrides = source, path, dict(overrides or {})
    return document, recipe


def _refuse_other_kind(document: Document, kind: type[Kind]) -> None:
    guides = is_guide(document)
    if guides and kind is Recipe:
        raise RecipeError(
            f"{document.name}: says how to draw ('guide'); expected 'edits'. Draw with it by 'surgery sample "
            "--guide'."
        )
    if not guides and kind is GuideRecipe and isinstance(document.value, dict) and "edits" in document.value:
        raise RecipeError(
            f"{document.name}: says what to edit ('edits'); expected 'guide'. Make its patch by 'surgery "
            "run'."
        )


def is_guide(document: Document) -> bool:
    """Whether a document says how to draw, and not what to edit."""
    return isinstance(document.value, dict) and "guide" in document.value and "edits" not in document.value


def _contradictions(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """What no single key shows: keys that need each other, and files that must exist."""
    yield from missing_files(recipe)
    for index, edit in enumerate(recipe.edits):
        if edit.emcid is not None:
            yield from _about_emcid(("edits", index, "emcid"), edit.emcid)
        if edit.cad is not None:
            yield from ((("edits", index, "cad", *key), message) for key, message in cad_faults(edit.cad))
        if edit.distill is not None:
            yield from (
                (("edits", index, "distill", *key), message) for key, message in distill_faults(edit.distill)
            )


def _about_emcid(place: Place, emcid: Emcid) -> Iterator[tuple[Place, str]]:
    if emcid.corpus.statistics is not None:
        # what was decided when the file was made cannot be said again
        for name in sorted(emcid.corpus.given().keys() - {"statistics", "shrinkage"}):
            message = "'statistics' has its captions and tokens counted already. Keep one of them."
            yield (*place, "corpus", name), message
    if emcid.offsets.timesteps and emcid.offsets.timesteps[0] > emcid.offsets.timesteps[1]:
        yield (*place, "offsets", "timesteps"), "the first is above the last. Swap them."
    for number, concept in enumerate(emcid.concepts):
        here: Place = (*place, "concepts", number)
        kind = concept.kind or emcid.kind
        yield from ((here, message) for message in share_faults(concept, kind))
        if concept.destination is None and not concept.images and kind in ("update", "rectify"):
            hint = "Add one of them, or set 'kind' to forget or style."
            yield here, f"kind {kind!r} needs a 'destination' or 'images' of one. {hint}"
