"""EMCID's part of a recipe: from its keys to settings."""

from surgery.methods.emcid.recipe import corpus_of
from surgery.recipe import parse_recipe
from tests.recipe.examples import SMALL


def test_the_padding_counts_unless_a_published_preset_says_otherwise() -> None:
    ours = corpus_of(parse_recipe(SMALL).edits[0].emcid)
    assert (ours.include_padding, ours.count) == (True, 5000)
    preset = {"edits[0].emcid.preset": "published-objects"}
    released = corpus_of(parse_recipe(SMALL, overrides=preset).edits[0].emcid)
    assert (released.include_padding, released.count) == (False, 100_000)
    given = preset | {"edits[0].emcid.corpus.count": "null"}
    assert corpus_of(parse_recipe(SMALL, overrides=given).edits[0].emcid).count is None
