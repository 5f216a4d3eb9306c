"""Verbs about recipes: list, show, copy, check. They load neither torch nor a model."""

from pathlib import Path

import click

from surgery.cli.options import (
    FILE,
    RECIPE,
    base_option,
    json_option,
    overwrite_option,
    print_json,
    recipe_argument,
    set_option,
)
from surgery.cli.program import FAILED, Verb, VerbGroup
from surgery.errors import RecipeError, SurgeryError
from surgery.recipe import (
    GuideRecipe,
    Recipe,
    files_of,
    load_any,
    recipe_schema,
    recipe_text,
    recipe_titles,
)
from surgery.record import JSON
from surgery.shelf import checkpoint_path, recipe_path


@click.group(cls=VerbGroup, invoke_without_command=True)
@json_option
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the recipes that come with the program."""
    if context.invoked_subcommand is not None:
        return
    titles = recipe_titles()
    if as_json:
        print_json([{"name": name, "title": title} for name, title in titles.items()])
        return
    width = max(map(len, titles), default=0)
    for name, title in titles.items():
        print(f"{name:{width}}  {title}".rstrip())


@recipes.command
def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    print_json(recipe_schema())


@click.command(cls=Verb)
@recipe_argument
def show(recipe: str) -> None:
    """Print a recipe."""
    print(recipe_text(recipe), end="")


@click.command(cls=Verb)
@click.argument("recipe", type=RECIPE)
@click.argument("target", type=FILE, required=False)
@overwrite_option
def copy(recipe: str, target: Path | None, overwrite: bool) -> None:
    """Copy a recipe to change it, with the files that it names in its own folder.

    TARGET is a file or a folder; without it, the copy goes into the working folder.
    """
    from surgery.checkpoint.atomic import atomic_file, write_bytes
    from surgery.checkpoint.outputs import refuse_existing

    source = recipe_path(recipe)
    place = target or Path()
    place = place / source.name if place.is_dir() else place
    # the recipe last: it stands when all that it names does
    copies = {place.parent / name: source.parent / name for name in _files_beside(source)} | {place: source}
    contents = {copied: origin.read_bytes() for copied, origin in copies.items()}
    missing = [one for one in copies if one == place or not _same(one, contents[one])]
    for copied in missing:
        refuse_existing(copied, overwrite)
    for copied in missing:
        with atomic_file(copied, overwrite=overwrite) as temporary:
            write_bytes(temporary, [contents[copied]])
    print(place)


def _files_beside(recipe: Path) -> tuple[str, ...]:
    """Files that a recipe names in its own folder; of one with faults the text alone is copied."""
    try:
        named = [one.name for one in files_of(load_any(recipe))]
    except RecipeError:
        return ()
    own = recipe.parent.resolve()
    return tuple(
        name
        for name in dict.fromkeys(named)
        if not Path(name).is_absolute()
        and (own / name).is_file()
        and (own / name).resolve().is_relative_to(own)
    )


def _same(place: Path, content: bytes) -> bool:
    return place.is_file() and place.read_bytes() == content


@click.command(cls=Verb)
@recipe_argument
@base_option
@set_option
@json_option
@click.pass_context
def check(
    context: click.Context, recipe: str, base: str | None, overrides: dict[str, str], as_json: bool
) -> None:
    """Check a recipe and report all its faults at once.

    Nothing but the recipe is read. Whether the base has what it changes, 'plan' tells; whether its words and
    pictures suit, 'run' tells before any work.
    """
    try:
        checked = load_any(recipe, overrides)
        place = checked.base_path() if base is None else checkpoint_path(base)
    except SurgeryError as error:
        if not as_json:
            raise
        print_json({"recipe": recipe, "faults": list(error.faults)})
        context.exit(FAILED)
    if as_json:
        print_json({"recipe": recipe, "faults": [], "base": str(place), **_facts(checked)})
        return
    if isinstance(checked, GuideRecipe):
        print(f"{recipe}: good; draws from {place} by {checked.guide.method}")
        return
    concepts = _concepts(checked)
    print(f"{recipe}: good; {concepts} concepts to edit in {place}, digest {checked.digest[:12]}")


def _facts(checked: Recipe | GuideRecipe) -> dict[str, JSON]:
    if isinstance(checked, GuideRecipe):
        return {"guide": checked.guide.method}
    return {"digest": checked.digest, "concepts": _concepts(checked)}


def _concepts(checked: Recipe) -> int:
    return sum(len(edit.entry.concepts) for edit in checked.edits)
