"""Law 7: the digest ignores spelling and changes with anything that changes a result."""

import json
import random
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from surgery.recipe import parse_recipe
from tests.recipe.examples import SMALL, small

names = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1).filter(lambda name: name.strip())
shares = st.floats(0.001, 0.999)
concepts = st.fixed_dictionaries(
    {"source": names, "destination": names},
    optional={"weight": st.floats(0.01, 100), "seed": st.integers(0, 99)},
)
recipes = st.fixed_dictionaries(
    {
        "surgery": st.just(1),
        "base": names,
        "edits": st.lists(
            st.fixed_dictionaries(
                {
                    "emcid": st.fixed_dictionaries(
                        {"concepts": st.lists(concepts, min_size=1, max_size=3)},
                        optional={
                            "preserve": st.lists(names, max_size=2),
                            "offsets": st.fixed_dictionaries(
                                {}, optional={"clamp": shares, "patience": st.just(3)}
                            ),
                            "update": st.fixed_dictionaries(
                                {}, optional={"alpha": shares, "sweeps": st.just(2)}
                            ),
                        },
                    )
                }
            ),
            min_size=1,
            max_size=2,
        ),
    },
    optional={"seed": st.integers(0, 2**40), "dtype": st.sampled_from(["float32", "bfloat16"])},
)


def shuffled(value: Any, shuffle: random.Random) -> Any:
    """The same value with the keys of all mappings in another order."""
    if isinstance(value, list):
        return [shuffled(item, shuffle) for item in value]
    if not isinstance(value, dict):
        return value
    items = list(value.items())
    shuffle.shuffle(items)
    return {key: shuffled(item, shuffle) for key, item in items}


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) whose entry is a scalar."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, Any]] = []
    for key, item in pairs:
        found += leaves(item) if isinstance(item, dict | list) else [(value, key)]
    return found


def digest(value: Any) -> str:
    return parse_recipe(json.dumps(value)).digest


@given(recipe=recipes, shuffle=st.randoms(use_true_random=False))
def test_comments_layout_and_key_order_do_not_change_the_digest(recipe: Any, shuffle: random.Random) -> None:
    block = yaml.safe_dump(shuffled(recipe, shuffle), sort_keys=False, allow_unicode=True, width=10_000)
    assert parse_recipe("# a comment\n\n" + block + "\n# another\n").digest == digest(recipe)


@given(recipe=recipes, data=st.data())
def test_every_changed_value_changes_the_digest(recipe: Any, data: st.DataObject) -> None:
    before = digest(recipe)
    container, key = data.draw(st.sampled_from([leaf for leaf in leaves(recipe) if leaf[1] != "surgery"]))
    old = container[key]
    if isinstance(old, str):
        container[key] = "float16" if key == "dtype" else old + "x"
    else:
        container[key] = old + 1 if isinstance(old, int) else old / 2
    assert digest(recipe) != before


def test_spellings_of_a_number_do_not_change_the_digest() -> None:
    assert (
        len({small(edits__0__emcid__offsets__clamp=text).digest for text in ("0.5", "5e-1", ".5", "+0.50")})
        == 1
    )
    assert (
        small(edits__0__emcid__update__ridge="4000").digest
        == small(edits__0__emcid__update__ridge="4e3").digest
    )


def test_spellings_of_a_range_do_not_change_the_digest() -> None:
    assert (
        small(edits__0__emcid__update__layers="0-2").digest
        == small(edits__0__emcid__update__layers="[2, 0, 1]").digest
    )


def test_the_title_does_not_change_the_digest() -> None:
    assert small(title="Cats").digest == small().digest


def test_a_default_that_is_spelled_out_does_not_change_the_digest() -> None:
    assert small(seed=0, sample__steps=25, edits__0__emcid__kind="update").digest == small().digest


def test_an_explicit_null_and_a_setting_left_out_differ() -> None:
    assert small(edits__0__emcid__update__null_space_threshold="null").digest != small().digest


def test_the_order_of_concepts_is_part_of_the_meaning() -> None:
    lines = SMALL.splitlines(keepends=True)
    lines[5], lines[6] = lines[6], lines[5]
    assert parse_recipe("".join(lines)).digest != small().digest
