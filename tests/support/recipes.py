"""Parts of recipes, for tests that know what is in them."""

from surgery.recipe import Emcid, Recipe


def emcid_of(recipe: Recipe, number: int = 0) -> Emcid:
    """The EMCID entry of one edit."""
    entry = recipe.edits[number].emcid
    assert entry is not None
    return entry
