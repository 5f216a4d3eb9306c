"""The recipe's knobs of EMCID are the method's, name by name."""

import json
from dataclasses import asdict, fields
from typing import get_args

import pytest
from pydantic import BaseModel

from surgery.errors import RecipeError
from surgery.methods.emcid.recipe import PRESETS
from surgery.methods.emcid.settings import (
    PUBLISHED,
    ConceptRules,
    CorpusSettings,
    OffsetSettings,
    UpdateSettings,
)
from surgery.recipe import Corpus, Offsets, Rules, Update, parse_recipe
from surgery.recipe.emcid import Preset
from tests.recipe.examples import SMALL
from tests.support.recipes import emcid_of


@pytest.mark.parametrize(
    ("part", "settings", "more"),
    [
        (Offsets, OffsetSettings, set()),
        (Update, UpdateSettings, set()),
        (Corpus, CorpusSettings, {"captions", "statistics"}),
        (Rules, ConceptRules, set()),
    ],
)
def test_keys_of_the_recipe_are_the_fields_of_the_method(
    part: type[BaseModel], settings: type, more: set[str]
) -> None:
    assert set(part.model_fields) - more == {field.name for field in fields(settings)}


@pytest.mark.parametrize("values", PUBLISHED.values(), ids=PUBLISHED)
def test_every_published_set_can_be_written_as_a_recipe(
    values: tuple[OffsetSettings, UpdateSettings],
) -> None:
    offsets, update = values
    assert Offsets.model_validate_json(json.dumps(asdict(offsets))).given() == asdict(offsets)
    assert Update.model_validate_json(json.dumps(asdict(update))).given() == asdict(update)


def test_the_rules_of_the_recipe_have_the_method_s_defaults() -> None:
    assert Rules().model_dump() == {field.name: field.default for field in fields(ConceptRules)}


def test_the_presets_of_the_recipe_are_the_method_s() -> None:
    assert set(get_args(Preset)) == set(PRESETS)


@pytest.mark.parametrize("key", ["offsets.samples", "update.ridge", "corpus.include_padding"])
def test_a_key_without_a_value_is_refused(key: str) -> None:
    with pytest.raises(RecipeError, match="found null, expected a value"):
        parse_recipe(SMALL, overrides={f"edits[0].emcid.{key}": "null"})


def test_patience_may_be_switched_off() -> None:
    recipe = parse_recipe(SMALL, overrides={"edits[0].emcid.offsets.patience": "null"})
    assert emcid_of(recipe).offsets.given()["patience"] is None
