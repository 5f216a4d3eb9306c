"""Recipes of guidance: what they say, and what they refuse."""

from pathlib import Path

import pytest

from surgery.errors import RecipeError
from surgery.recipe import GuideRecipe, Recipe, load_any, load_recipe, parse_guide, parse_recipe
from tests.recipe.examples import SMALL

HEAD = "surgery: 1\nbase: pocket-sd\n"
SUBJECTS = HEAD + "guide:\n  concept_diffusion: {weight: 3, threshold: null}\n"


def faults_of(source: str, path: Path | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_guide(source, path=path)
    return str(caught.value)


def test_only_the_settings_that_the_recipe_names_count_as_given() -> None:
    entry = parse_guide(SUBJECTS).guide.concept_diffusion
    assert entry is not None
    assert (entry.preset, entry.given()) == ("ours", {"weight": 3.0, "threshold": None})


def test_patches_take_part_as_published_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "look").write_bytes(b"")
    source = HEAD + "guide: {gcfg: {concepts: [{patch: look}]}}\n"
    recipe = parse_guide(source, path=tmp_path / "guide.yaml")
    entry = recipe.guide.gcfg
    assert entry is not None
    (concept,) = entry.concepts
    assert (concept.weight, entry.control_weight) == (None, None)  # what patches say
    assert (concept.base_strength, entry.mode) == (0, "mixed")
    assert recipe.file(concept.patch) == tmp_path / "look"


@pytest.mark.parametrize(
    ("guide", "fault"),
    [
        ("gcfg: {concepts: []}", "expected at least 1"),
        ("gcfg: {concepts: [{patch: none}]}", "guide.gcfg.concepts[0].patch: no file none"),
        ("gcfg: {concepts: [{pach: x}]}", "Did you mean 'patch'?"),
        ("concept_diffusion: {preset: later, softness: 0.1}", "preset 'later' does not read it"),
        ("concept_diffusion: {quantile: 0.5}", "preset 'ours' does not read it"),
        ("concept_diffusion: {weight: null}", "found null, expected a value"),
        ("concept_diffusion: {preset: later, threshold: null}", "no threshold by the number of subjects"),
        ("scaling_concept: {concept: cat, images: [none.png]}", "no file none.png"),
        ("scaling_concept: {concept: cat, images: [a], scales: [.nan]}", "expected a number"),
        (
            "{concept_diffusion: {}, gcfg: {concepts: [{patch: x}]}}",
            "found gcfg and concept_diffusion, expected one method of gcfg, concept_diffusion, "
            "scaling_concept. Make a recipe of each",
        ),
        ("{}", "found none, expected one method"),
    ],
)
def test_what_makes_no_sense_is_named(guide: str, fault: str) -> None:
    text = guide if guide.startswith("{") else "{" + guide + "}"
    assert fault in faults_of(HEAD + f"guide: {text}\n")


def test_pictures_are_drawn_along_their_own_paths_and_take_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    source = HEAD + "guide: {scaling_concept: {concept: cat, images: [a.png]}}\nsample: {prompts: [a dog]}\n"
    assert "drawn along their own paths" in faults_of(source, tmp_path / "guide.yaml")


def test_either_kind_says_where_the_other_belongs() -> None:
    assert "says what to edit ('edits'); expected 'guide'" in faults_of(SMALL)
    with pytest.raises(RecipeError, match="says how to draw"):
        parse_recipe(SUBJECTS)


def test_a_recipe_of_either_kind_is_read_as_what_it_is(tmp_path: Path) -> None:
    for name, source, kind in (("a", SUBJECTS, GuideRecipe), ("b", SMALL, Recipe)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(source)
        assert type(load_any(path)) is kind
    with pytest.raises(RecipeError, match="surgery sample --guide"):
        load_recipe(tmp_path / "a.yaml")
