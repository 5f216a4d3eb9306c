"""EMCID's part of a recipe: from its keys to settings."""

from surgery.methods.emcid.recipe import corpus_of
from surgery.recipe import parse_recipe
from tests.recipe.examples import SMALL
from tests.support.recipes import emcid_of


def test_the_padding_counts_unless_a_published_preset_says_otherwise() -> None:
    ours = corpus_of(emcid_of(parse_recipe(SMALL)))
    assert (ours.include_padding, ours.count) == (True, 5000)
    preset = {"edits[0].emcid.preset": "published-objects"}
    released = corpus_of(emcid_of(parse_recipe(SMALL, overrides=preset)))
    assert (released.include_padding, released.count) == (False, 100_000)
    given = preset | {"edits[0].emcid.corpus.count": "null"}
    assert corpus_of(emcid_of(parse_recipe(SMALL, overrides=given))).count is None
