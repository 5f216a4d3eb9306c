"""The shelf of recipes: every one is sound, and says only what its checkpoint knows."""

import json

import pytest

from surgery.recipe import Emcid, GuideRecipe, Recipe, files_of, load_any, load_recipe, recipe_titles
from surgery.shelf import checkpoint_path, recipe_names, recipe_path
from tests.support.recipes import emcid_of

NAMES = recipe_names()


def known_words() -> set[str]:
    concepts = json.loads((checkpoint_path("pocket-sd") / "concepts.json").read_text(encoding="utf-8"))
    words = {entry["name"] for entry in concepts["concepts"] + concepts["professions"]}
    aliases = {
        alias for entry in concepts["concepts"] + concepts["professions"] for alias in entry["aliases"]
    }
    return words | aliases | set(concepts["styles"])


def words_of(recipe: Recipe | GuideRecipe) -> set[str]:
    words: set[str] = set()
    if isinstance(recipe, GuideRecipe):
        subjects, scaled = recipe.guide.concept_diffusion, recipe.guide.scaling_concept
        phrases = {phrase for own in subjects.subjects.values() for phrase in own} if subjects else set()
        phrases |= {scaled.concept} if scaled else set()
        # phrases carry articles, and a name may be of two words
        return {phrase.removeprefix("a ").removeprefix("an ") for phrase in phrases}
    for edit in recipe.edits:
        if edit.emcid is not None:
            words |= words_of_emcid(edit.emcid)
        if edit.cad is not None:
            words.update(edit.cad.retain, (concept.source for concept in edit.cad.concepts))
        if edit.distill is not None:
            words.update(edit.distill.preserve, (concept.source for concept in edit.distill.concepts))
    return words


def words_of_emcid(entry: Emcid) -> set[str]:
    words = set(entry.preserve)
    # what is put right may be a word that the model does not know
    kinds = {concept.source: concept.kind or entry.kind for concept in entry.concepts}
    words.update(source for source, kind in kinds.items() if kind != "rectify")
    words.update(concept.destination for concept in entry.concepts if concept.destination)
    return words


def test_the_shelf_has_the_quickstart_and_something_for_each_use() -> None:
    assert "quickstart" in NAMES
    assert {name.partition("/")[0] for name in NAMES} >= {"erase", "amplify", "replace", "debias", "guide"}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_passes_check_with_its_base_at_hand(name: str) -> None:
    recipe = load_any(name)
    assert recipe.base_path().is_dir()
    assert recipe.title
    assert recipe.path == recipe_path(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_for_pocket_sd_names_only_what_pocket_sd_knows(name: str) -> None:
    recipe = load_any(name)
    if recipe.base == "pocket-sd":
        assert words_of(recipe) <= known_words()


def test_the_quickstart_updates_at_least_ten_concepts_jointly_and_without_chains() -> None:
    entry = emcid_of(load_recipe("quickstart"))
    sources = {concept.source for concept in entry.concepts}
    destinations = {concept.destination for concept in entry.concepts}
    assert entry.kind == "update"
    assert len(sources) == len(entry.concepts) >= 10
    assert not sources & destinations


def test_the_recipes_of_guidance_name_something() -> None:
    assert all(words_of(load_any(name)) for name in NAMES if name.startswith("guide/"))


def test_titles_are_listed_by_name() -> None:
    titles = recipe_titles()
    assert list(titles) == NAMES
    assert len(set(titles.values())) == len(NAMES)


def test_the_shelf_holds_nothing_but_recipes_and_what_they_name() -> None:
    root = recipe_path("quickstart").parent
    recipes = {recipe_path(name) for name in NAMES}
    named = {recipe_path(name).parent / one.name for name in NAMES for one in files_of(load_any(name))}
    assert {path for path in root.rglob("*") if path.is_file()} == recipes | named
