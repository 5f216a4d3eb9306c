"""``--set``: what it can reach, and how its faults are told."""

import pytest

from surgery.errors import RecipeError
from surgery.recipe import parse_recipe
from tests.recipe.examples import SMALL
from tests.support.recipes import emcid_of


def test_an_override_reaches_into_lists() -> None:
    recipe = parse_recipe(SMALL, overrides={"edits[0].emcid.concepts[1].source": "a wolf"})
    assert [concept.source for concept in emcid_of(recipe).concepts] == ["cat", "a wolf"]


def test_an_override_makes_the_mappings_on_its_way() -> None:
    recipe = parse_recipe(SMALL, overrides={"evaluate.samples": "9", "edits[0].emcid.update.ridge": "1e3"})
    assert recipe.evaluate is not None
    assert recipe.evaluate.samples == 9
    assert emcid_of(recipe).update.ridge == 1000.0


def test_overrides_are_kept_beside_the_source() -> None:
    recipe = parse_recipe(SMALL, overrides={"seed": "3"})
    assert (recipe.overrides, recipe.source) == ({"seed": "3"}, SMALL)


def test_a_fault_in_an_override_points_to_it_and_names_the_nearest_key() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALL, overrides={"edits[0].emcid.offsets.stesp": "3", "sead": "1", "seed": "one"})
    assert str(caught.value).splitlines()[1:] == [
        "- --set edits[0].emcid.offsets.stesp: unknown key. Did you mean 'steps'?",
        "- --set sead: unknown key. Did you mean 'seed'?",
        "- --set seed: found the text 'one', expected a whole number.",
    ]


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("edits[3].emcid.kind", "beyond the list's 1 entries"),
        ("base[0]", "asks for a list"),
        ("edits.emcid", "asks for a key"),
        ("base.name", "asks for a key"),
        ("", "no path in a recipe"),
        ("a..b", "no path in a recipe"),
        ("a[x]", "no path in a recipe"),
        ("a[-1]", "no path in a recipe"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(path: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=f"--set {path}".replace("[", r"\[")) as caught:
        parse_recipe(SMALL, overrides={path: "1"})
    assert fault in str(caught.value)


def test_a_value_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(RecipeError, match="--set seed: .*no valid YAML"):
        parse_recipe(SMALL, overrides={"seed": "[1"})
