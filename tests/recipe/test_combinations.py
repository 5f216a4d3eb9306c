"""Target shares in recipes: combinations of values, and everything that may be wrong with them."""

import pytest

from surgery.errors import RecipeError
from surgery.recipe import Recipe, parse_recipe
from surgery.recipe.combinations import combinations, mixture
from tests.support.recipes import emcid_of

RECIPE = """surgery: 1
base: pocket-sd
edits:
  - emcid:
      kind: debias
      concepts:
        - {{source: doctor, {}}}
"""


def recipe(concept: str) -> Recipe:
    return parse_recipe(RECIPE.format(concept))


def shares(concept: str) -> dict[str, float]:
    found = combinations(emcid_of(recipe(concept)).concepts[0])
    return {" ".join(value for _, value in values): share for values, share in found.items()}


def test_a_list_of_values_means_equal_shares() -> None:
    assert shares("shares: {skin: [light, medium, dark, darker]}") == {
        "light": 0.25, "medium": 0.25, "dark": 0.25, "darker": 0.25
    }  # fmt: skip


def test_thirds_written_as_decimals_are_scaled_to_one() -> None:
    found = shares("shares: {skin: {light: 0.333, medium: 0.333, dark: 0.333}}")
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert found["light"] == pytest.approx(1 / 3)


def test_two_attributes_make_the_product_of_their_shares() -> None:
    found = shares("shares: {gender: {woman: 0.7, man: 0.3}, skin: [light, dark]}")
    assert found == pytest.approx(
        {"woman light": 0.35, "woman dark": 0.35, "man light": 0.15, "man dark": 0.15}
    )


def test_joint_shares_stand_in_place_of_the_product_in_any_order_of_attributes() -> None:
    found = shares(
        "shares: {gender: [woman, man], skin: [light, dark]}, joint: ["
        "{values: {skin: dark, gender: woman}, share: 0.6}, {values: {gender: man, skin: light}, share: 0.4}]"
    )
    assert found == {"woman dark": 0.6, "man light": 0.4}


def test_a_value_that_is_never_wanted_makes_no_combination() -> None:
    assert shares("shares: {skin: {light: 0.5, dark: 0.5, medium: 0}}") == {"light": 0.5, "dark": 0.5}


def test_a_mixture_is_read_in_the_order_of_the_combinations() -> None:
    given = recipe(
        "shares: {gender: [woman, man]}, mixture: ["
        "{values: {gender: man}, weight: -0.2}, {values: {gender: woman}, weight: 1.2}]"
    )
    assert mixture(emcid_of(given).concepts[0]) == pytest.approx((1.2, -0.2))


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("destination: nurse", "kind 'debias' needs 'shares'"),
        ("shares: {gender: [woman, man]}, destination: nurse", "kind 'debias' has no 'destination'"),
        ("kind: update, destination: x, shares: {gender: [woman, man]}", "'shares' belongs to kind 'debias'"),
        ("shares: {gender: {woman: 0.5, man: 0.4}}", "the shares add up to 0.9, expected 1"),
        ("shares: {gender: [woman, woman]}", "a value is named twice"),
        ("shares: {gender: [woman]}", "found 1 values, expected two or more"),
        ("shares: {gender: {woman: 1, man: 0}}", "leave 1 combinations of values, expected 2 to 64"),
        ("shares: {gender: {woman: 1.5, man: -0.5}}", "greater than or equal to 0"),
        ("shares: {gender: [woman, man]}, share: 1", "unknown key. Did you mean 'shares'?"),
        (
            "shares: {gender: [woman, man]}, joint: [{values: {gender: woman}, share: 0.5},"
            " {values: {gender: elf}, share: 0.4}]",
            "'joint' has gender 'elf', and 'shares' has woman, man",
        ),
        (
            "shares: {gender: [woman, man]}, joint: [{values: {gender: woman}, share: 0.5},"
            " {values: {gender: man}, share: 0.4}]",
            "the shares of 'joint' add up to 0.9",
        ),
        (
            "shares: {gender: [woman, man]}, mixture: [{values: {gender: woman}, weight: 0.5},"
            " {values: {skin: dark}, weight: 0.5}]",
            "'mixture' has an entry (dark) of other attributes than gender",
        ),
        (
            "shares: {gender: [woman, man]}, mixture: [{values: {gender: woman}, weight: 0.5},"
            " {values: {gender: woman}, weight: 0.5}]",
            "'mixture' has woman twice",
        ),
    ],
)
def test_a_fault_is_named_with_its_place(concept: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(concept)
    assert any(message in fault for fault in caught.value.faults), caught.value.faults
