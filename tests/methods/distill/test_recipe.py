"""Recipes with 'distill': settings, faults, and a patch that is put in and taken out."""

from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.errors import MethodError, RecipeError
from surgery.execute import check_edits, compute_patch, plan_recipe
from surgery.methods.distill.recipe import concepts_of, names_of, replacements, settings_of
from surgery.patch import apply_patch, load_patch, revert_patch, save_patch
from surgery.recipe import Distill, Recipe, parse_recipe
from surgery.shelf import checkpoint_path
from surgery.store import Store
from tests.support.folders import contents

TEXT = """\
surgery: 1
base: {base}
edits:
  - distill:
      preset: {preset}
      concepts: {concepts}
      preserve: {preserve}
      components: {components}
      distillation: {distillation}
"""
USUAL = {
    "preset": "null",
    "concepts": "[{source: cat, scale: -1}, {source: dog, scale: 2}]",
    "preserve": "[]",
    "components": "[attn2_kv]",
    "distillation": "{steps: 2, batch: 2, paths: 2, sampling_steps: 2, graded_steps: 1, refresh: 1}",
}


def parsed(base: object = "pocket-sd", **changes: str) -> Recipe:
    return parse_recipe(TEXT.format(base=base, **{**USUAL, **changes}))


def entry_of(recipe: Recipe) -> Distill:
    found = recipe.edits[0].distill
    assert found is not None
    return found


def test_presets_are_where_settings_start_from() -> None:
    esd = parsed(preset="esd", distillation="{steps: 7}")
    settings = settings_of(entry_of(esd), esd)
    plain = parsed(preset="esd", concepts="[{source: cat}]", components="null")
    assert [one.scale for one in concepts_of(entry_of(plain), plain)] == [-1.0]
    assert all(
        ".attn2." in name for name in names_of(entry_of(plain), open_checkpoint(checkpoint_path("pocket-sd")))
    )
    assert (settings.steps, settings.start, settings.batch, settings.null_weight) == (7, "none", 1, 0.0)
    closed = parsed(preset="closed-form", distillation="{ridge: 0.1}")
    settings = settings_of(entry_of(closed), closed)
    assert (settings.steps, settings.start, settings.ridge) == (0, "closed_form", 0.1)


def test_less_erases_and_more_amplifies() -> None:
    recipe = parsed()
    assert [one.kind for one in replacements(entry_of(recipe), recipe)] == ["erase", "amplify"]
    cat, dog = concepts_of(entry_of(recipe), recipe)
    assert (cat.scale, dog.scale) == (-1.0, 2.0)
    assert cat.seed != dog.seed


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"concepts": "[{source: cat, scale: 1}]"}, r"concepts\[0\]\.scale: 1 changes nothing"),
        (
            {"preset": "closed-form", "distillation": "{steps: 3}"},
            r"distillation\.steps: the closed form does not read it",
        ),
        ({"preset": "esd", "preserve": "[bird]"}, "preset 'esd' preserves nothing"),
        ({"distillation": "{steps: null}"}, "found null, expected a value"),
        ({"distillation": "{steps: 0, rank: 4}"}, r"distillation\.rank: the closed form does not read it"),
    ],
)
def test_keys_that_contradict_each_other_are_named(changes: dict[str, str], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        parsed(**changes)


def test_weights_of_text_encoders_are_refused(tiny_pipeline: Path) -> None:
    recipe = parsed(tiny_pipeline, components="[text_mlp]")
    with pytest.raises(MethodError, match="no weight of the U-Net"):
        plan_recipe(recipe, open_checkpoint(tiny_pipeline))


def test_a_concept_that_is_preserved_is_refused_before_any_work(tiny_pipeline: Path) -> None:
    recipe, models = parsed(tiny_pipeline, preserve="[Cat]"), load_pipeline(tiny_pipeline)
    with pytest.raises(MethodError, match="changed and preserved"):
        check_edits(recipe, open_checkpoint(tiny_pipeline), models)


@pytest.mark.parametrize(
    "changes",
    [
        {"components": "['unet/mid_block*attn2*']", "preserve": "[bird]"},
        {"preset": "closed-form", "distillation": "{}"},
    ],
)
def test_the_patch_is_put_in_and_taken_out_to_the_byte(
    tiny_pipeline: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    base, recipe = open_checkpoint(tiny_pipeline), parsed(tiny_pipeline, **changes)
    plan, models = plan_recipe(recipe, base), load_pipeline(tiny_pipeline)
    computed = compute_patch(recipe, plan, base, models, Store(tmp_path / "store"))
    save_patch(computed.patch, tmp_path / "patch")
    patch = load_patch(tmp_path / "patch")
    assert set(patch.changes) == set(plan.steps[0].shapes)
    assert apply_patch(patch, tiny_pipeline, tmp_path / "edited", undo=tmp_path / "undo").exact
    assert contents(tmp_path / "edited") != contents(tiny_pipeline)
    revert_patch(patch, tmp_path / "edited", tmp_path / "reverted", undo=tmp_path / "undo")
    assert contents(tmp_path / "reverted") == contents(tiny_pipeline)
    report: Any = computed.outcomes[0].report
    assert report["scales"] == {"cat": -1.0, "dog": 2.0}
    assert (report["closed_form_rank"] > 0) is True
    assert report["steps"] == (0 if "preset" in changes else 2)
