"""Plans are made from headers, keep their identity under spelling, and lose it with anything that matters."""

from dataclasses import replace
from pathlib import Path

import pytest

from surgery.checkpoint import open_checkpoint
from surgery.errors import MethodError
from surgery.execute import plan_recipe
from surgery.plan import Plan, build_plan
from surgery.recipe import parse_recipe
from surgery.record import Work

RECIPE = """surgery: 1
base: {base}
edits:
  - emcid:
      concepts:
        - {{source: cat, destination: pizza}}
        - {{source: dog, destination: fish}}
        - {{source: doctor, destination: pizza}}
      offsets: {{mode: text, steps: 5, batch: 2}}
      update: {{layers: 0-10}}
      corpus: {{captions: captions.txt}}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "captions.txt").write_text("a photo of a cat\na picture of the dog\n")
    return tmp_path / "recipe.yaml"


def planned(text: str, place: Path, base: Path) -> Plan:
    recipe = parse_recipe(text.format(base=base), path=place)
    return plan_recipe(recipe, open_checkpoint(base))


def test_a_plan_names_the_second_mlp_matrix_of_every_layer(tiny_pipeline: Path, recipe_file: Path) -> None:
    plan = planned(RECIPE, recipe_file, tiny_pipeline)
    (step,) = plan.steps
    assert step.work.sites == tuple(
        f"text_encoder/text_model.encoder.layers.{layer}.mlp.fc2.weight" for layer in range(11)
    )
    assert step.parameters == 11 * 32 * 128
    assert step.work.batches == (2, 1)


def test_identity_ignores_comments_key_order_and_spelling_of_numbers(
    tiny_pipeline: Path, recipe_file: Path
) -> None:
    respelled = RECIPE.replace("surgery: 1\nbase: {base}", "# a comment\nbase: {base}\nsurgery: 1")
    respelled = respelled.replace("mode: text, steps: 5, batch: 2", "batch: 2, steps: 5, mode: text")
    respelled = respelled.replace("layers: 0-10", "layers: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")
    first = planned(RECIPE, recipe_file, tiny_pipeline)
    assert planned(respelled, recipe_file, tiny_pipeline).identity == first.identity


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("destination: fish", "destination: cat"),
        ("steps: 5", "steps: 6"),
        ("batch: 2", "batch: 3"),
        ("layers: 0-10", "layers: 7-10"),
        ("captions: captions.txt", "captions: captions.txt, shrinkage: 0.1"),
        ("edits:", "seed: 1\nedits:"),
    ],
)
def test_identity_changes_with_what_changes_the_result(
    tiny_pipeline: Path, recipe_file: Path, old: str, new: str
) -> None:
    changed = RECIPE.replace(old, new)
    assert changed != RECIPE
    first = planned(RECIPE, recipe_file, tiny_pipeline)
    assert planned(changed, recipe_file, tiny_pipeline).identity != first.identity


def test_identity_changes_with_the_captions_themselves(tiny_pipeline: Path, recipe_file: Path) -> None:
    before = planned(RECIPE, recipe_file, tiny_pipeline).identity
    (recipe_file.parent / "captions.txt").write_text("another caption\n")
    assert planned(RECIPE, recipe_file, tiny_pipeline).identity != before


def test_sites_that_the_base_lacks_are_all_named_at_once(tiny_pipeline: Path, recipe_file: Path) -> None:
    recipe = parse_recipe(RECIPE.format(base=tiny_pipeline), path=recipe_file)
    sites = tuple(f"text_encoder/text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (3, 30, 31))
    work = Work(method="emcid", meaning={}, sites=sites, batches=(1,))
    with pytest.raises(MethodError) as caught:
        build_plan(recipe, open_checkpoint(tiny_pipeline), [work])
    assert "layers.30" in str(caught.value)
    assert "layers.31" in str(caught.value)
    assert "edits 'text_encoder/text_model.encoder.layers.3.mlp" not in str(caught.value)


def test_weights_that_one_edit_takes_away_and_another_adds_to_are_refused(
    tiny_pipeline: Path, recipe_file: Path
) -> None:
    recipe, base = (
        parse_recipe(RECIPE.format(base=tiny_pipeline), path=recipe_file),
        open_checkpoint(tiny_pipeline),
    )
    sites = tuple(f"text_encoder/text_model.encoder.layers.{n}.mlp.fc2.weight" for n in (0, 1))
    added = Work(method="emcid", meaning={}, sites=sites, batches=(1,))
    mask, other = (
        Work(method="cad", meaning={}, sites=own, batches=(1,), masks=True) for own in (sites[:1], sites[1:])
    )
    for works in ([added, mask], [mask, added]):
        with pytest.raises(MethodError, match=r"layers\.0\.mlp.* and emcid adds to it \(and 0 more\)"):
            build_plan(recipe, base, works)
    build_plan(recipe, base, [mask, mask, other])  # masks mix
    build_plan(recipe, base, [replace(added, sites=sites[1:]), mask])


def test_layers_that_the_base_lacks_are_refused_from_its_header(
    tiny_pipeline: Path, recipe_file: Path
) -> None:
    with pytest.raises(MethodError, match="this encoder has 12"):
        planned(RECIPE.replace("layers: 0-10", "layers: 0-14"), recipe_file, tiny_pipeline)


def test_missing_captions_are_an_error_that_says_what_to_name(tiny_pipeline: Path, recipe_file: Path) -> None:
    text = RECIPE.replace("captions: captions.txt", "captions: pocket")
    with pytest.raises(MethodError, match="corpus.captions"):
        planned(text, recipe_file, tiny_pipeline)
