"""Component attribution as recipes ask for it: settings, plan, checks, and a run that applies and reverts."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.delta import Form, Rescale
from surgery.errors import RecipeError, SurgeryError
from surgery.execute import check_edits, compute_patch, plan_recipe
from surgery.methods.cad.maker import LISTED
from surgery.methods.cad.paths import sampler_rows
from surgery.methods.cad.recipe import _of_erased, concepts_of, preserved, replacements, settings_of
from surgery.methods.cad.settings import PRESETS, AttributionSettings, SelectionSettings
from surgery.methods.cad.trial import growing_rows, trial_rows
from surgery.patch import apply_patch, load_patch, revert_patch, save_patch
from surgery.recipe import Cad, Recipe, parse_recipe
from surgery.recipe.cad import Attribution, Selection
from surgery.store import Store
from surgery.study.remembered import edits_of
from tests.support.folders import contents
from tests.support.small import small_pipeline

TEXT = """surgery: 1
base: {base}
edits:
  - cad:
      concepts: [{{source: cat}}, {{source: dog, templates: ["a {{}}"], seed: 7}}]
      attribution: {{trajectories: 1, sampling_steps: 2, graded_steps: 1, staggered: false}}
      selection: {{ratio: 0.05}}
"""


def parsed(base: Path | str = "pocket-sd", **overrides: str) -> Recipe:
    changes = {f"edits[0].cad.{key.replace('__', '.')}": value for key, value in overrides.items()}
    return parse_recipe(TEXT.format(base=base), overrides=changes)


def entry(**overrides: str) -> Cad:
    found = parsed(**overrides).edits[0].cad
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("part", "settings"), [(Attribution, AttributionSettings), (Selection, SelectionSettings)]
)
def test_keys_of_the_recipe_are_the_fields_of_the_method(part: type[BaseModel], settings: type) -> None:
    assert set(part.model_fields) == {field.name for field in fields(settings)}


def test_keys_of_the_recipe_win_over_the_preset_s() -> None:
    found = settings_of(
        entry(preset="published-erase", selection="{ratio: 0.01}", attribution="{guidance: 2}")
    )
    published, selection = PRESETS["published-erase"]
    assert found.attribution.guidance == 2.0
    assert (found.attribution.sampling_steps, found.attribution.restart) == (published.sampling_steps, True)
    assert (found.selection.ratio, found.selection.rounding) == (0.01, selection.rounding)


def test_published_presets_ask_with_the_bare_name() -> None:
    cat, _ = concepts_of(entry(preset="published-erase", attribution="{}"), parsed())
    assert cat.prompts == ("cat",)


def test_the_quick_preset_shortens_paths_and_asks_as_without_a_preset() -> None:
    quick, usual = (entry(preset=preset, attribution="{}") for preset in ("quick", "null"))
    assert concepts_of(quick, parsed()) == concepts_of(usual, parsed())
    assert settings_of(quick).selection == settings_of(usual).selection
    rows = [sampler_rows(settings_of(one).attribution) for one in (quick, usual)]
    assert rows == [80, 216]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "amplify", "preset": "published-erase"},
            "is no preset of kind 'amplify'. Use 'published-amplify'",
        ),
        ({"kind": "amplify", "preset": "quick", "attribution": "{}"}, "'quick' is no preset of kind"),
        ({"preset": "quick", "attribution": "{objective: denoise}"}, "preset: 'quick' shortens paths"),
        ({"attribution": "{pictures: 3}"}, "attribution.pictures: belongs to objective 'denoise'"),
        ({"kind": "amplify", "attribution": "{restart: true}"}, "restart: belongs to objective 'base_gap'"),
        ({"retain": "[fish]"}, "retain: nothing reads the names"),
        ({"selection": "{ratio: 0.1, count: 5}"}, "count: takes the ratio's place"),
        ({"selection": "{ratio: 0.1, left: 0}"}, "left: takes the ratio's place"),
        ({"kind": "amplify", "selection": "{left: 0}", "attribution": "{}"}, "left: is how far a concept is"),
        ({"selection": "{ranking: damage}"}, "ranking: looks at concepts that must stay"),
        ({"selection": "{protect: 0.1}", "retain": "[Cat]"}, "is to go and to be retained"),
        ({"concepts": "[{source: cat}, {source: Cat}]"}, "stands there twice"),
        ({"components": "[]"}, "components"),
        ({"attribution": "{standard_errors: true}"}, "standard_errors: is read by selection.ranking 't'"),
        ({"attribution": "{restart: true, trajectories: 3}"}, "trajectories: restart has a path for every"),
        (
            {"preset": "published-erase", "attribution": "{trajectories: 3}"},
            "trajectories: restart has a path for every",
        ),
        ({"selection": "{retain_weight: 2}"}, "retain_weight: is read by the rankings"),
        ({"selection": "{count: 5, rounding: floor}"}, "rounding: is about a ratio"),
        (
            {
                "kind": "amplify",
                "concepts": "[{source: cat, images: [a.png]}]",
                "attribution": "{pictures: 3, guidance: 2}",
            },
            "pictures: is about drawn pictures",
        ),
    ],
)
def test_keys_that_nothing_reads_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        entry(**changes)


def test_amplifying_takes_what_stands_in_the_way_of_denoising() -> None:
    found = settings_of(entry(kind="amplify", attribution="{pictures: 2}"))
    assert (found.polarity, found.attribution.objective) == ("negative", "denoise")


def test_prompts_and_seeds_follow_from_templates_names_and_the_recipe_s_seed() -> None:
    cat, dog = concepts_of(entry(), parsed())
    assert cat.prompts == ("cat", "a photo of cat", "an image of cat")
    assert (dog.prompts, dog.seed) == (("a dog",), 7)
    other = parse_recipe(TEXT.format(base="pocket-sd"), overrides={"seed": "1"})
    assert concepts_of(entry(), other)[0].seed != cat.seed


def test_an_edit_names_one_method() -> None:
    both = TEXT.format(base="pocket-sd") + "    emcid: {concepts: [{source: a, destination: b}]}\n"
    with pytest.raises(RecipeError, match="found emcid and cad, expected one method"):
        parse_recipe(both)
    with pytest.raises(RecipeError, match="found none, expected one method of emcid, cad"):
        parse_recipe("surgery: 1\nbase: pocket-sd\nedits: [{}]\n")


def test_a_missing_picture_is_named() -> None:
    with pytest.raises(RecipeError, match=r"edits\[0\]\.cad\.concepts\[0\]\.images\[0\]: no file"):
        parsed(kind="amplify", attribution="{}", concepts="[{source: cat, images: [none.png]}]")


def test_a_plan_names_its_weights_and_cost(tiny_pipeline: Path) -> None:
    plan = plan_recipe(parsed(tiny_pipeline), open_checkpoint(tiny_pipeline))
    (step,) = plan.steps
    scheme = AttributionSettings(trajectories=1, sampling_steps=2, graded_steps=1, staggered=False)
    assert len(step.work.sites) == 32
    assert step.work.cost["unet_backwards"] == 2
    assert step.work.cost["unet_forwards"] == 2 * (2 + 1) + trial_rows(scheme, 2)
    assert step.work.cost["weights_scored"] == step.parameters


def test_a_plan_counts_the_growing_of_masks(tiny_pipeline: Path) -> None:
    base = open_checkpoint(tiny_pipeline)
    costs = [
        plan_recipe(parsed(tiny_pipeline, selection=selection, controls="false"), base).steps[0].work.cost
        for selection in ("{ratio: 0.05}", "{left: 0}")
    ]
    scheme = AttributionSettings(trajectories=1, sampling_steps=2, graded_steps=1, staggered=False)
    more = costs[1]["unet_forwards"] - costs[0]["unet_forwards"]
    assert more == growing_rows(scheme, 2, LISTED)


def test_a_broken_picture_is_said_before_any_work(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    changes = {
        "edits[0].cad.kind": "amplify",
        "edits[0].cad.attribution": "{}",
        "edits[0].cad.concepts": "[{source: cat, images: [broken.png]}]",
    }
    text = TEXT.format(base=tiny_pipeline)
    recipe = parse_recipe(text, path=tmp_path / "recipe.yaml", overrides=changes)
    with pytest.raises(SurgeryError, match=r"broken\.png"):
        check_edits(recipe, open_checkpoint(tiny_pipeline), small_pipeline(tiny_pipeline))


def test_of_a_difference_the_first_concept_goes_and_the_others_stay(tiny_pipeline: Path) -> None:
    asked = parsed(tiny_pipeline, combine="difference", controls="false")
    found = asked.edits[0].cad
    assert found is not None
    assert [one.source for one in replacements(found, asked)] == ["cat"]
    base = open_checkpoint(tiny_pipeline)
    computed = compute_patch(asked, plan_recipe(asked, base), base, load_pipeline(tiny_pipeline), None)
    assert computed.outcomes[0].preserved == ("dog",) == preserved(found)
    made: Any = computed.patch.provenance["made"]
    assert made[0]["combine"] == "difference"
    told = edits_of(computed.patch, None, tiny_pipeline)  # what is measured later is left out there, too
    assert ([one.source for one in told.asked], told.preserved) == (["cat"], ("dog",))
    # what is spared may also be named among what must stay
    parsed(tiny_pipeline, combine="difference", retain="[dog]", selection="{protect: 0.1}")
    with pytest.raises(RecipeError, match="to go and to be retained"):
        parsed(tiny_pipeline, combine="difference", retain="[cat]", selection="{protect: 0.1}")
    with pytest.raises(RecipeError, match="leaves no scores"):
        parsed(tiny_pipeline, combine="difference", selection="{scores: true}")
    with pytest.raises(RecipeError, match="needs a ratio"):
        parsed(tiny_pipeline, combine="intersection", selection="{left: 0}")
    with pytest.raises(RecipeError, match="of the masks of several concepts"):
        parsed(combine="intersection", concepts="[{source: cat}]")


def test_pictures_of_what_an_earlier_patch_erased_are_asked_for(tiny_pipeline: Path) -> None:
    settings = settings_of(entry(kind="amplify", attribution="{}"))
    recipe = parsed(tiny_pipeline)
    (cat, _) = concepts_of(entry(), recipe)
    later = recipe.model_copy(update={"after": ("one",)})
    assert list(_of_erased(recipe, settings, [cat])) == []
    (finding,) = _of_erased(later, settings, [cat])
    assert (finding.kind, finding.subject) == ("drawn-when-erased", "cat")
    assert list(_of_erased(later, settings, [replace(cat, images=(Path("a.png"),))])) == []
    assert list(_of_erased(later, settings_of(entry()), [cat])) == []


def test_one_concept_is_not_erased_and_amplified_at_once(tiny_pipeline: Path) -> None:
    text = TEXT.format(base=tiny_pipeline)
    both = parse_recipe(
        text + text[text.index("  - cad:") :],
        overrides={"edits[1].cad.kind": "amplify", "edits[1].cad.attribution": "{}"},
    )
    with pytest.raises(SurgeryError, match="cat"):
        check_edits(both, open_checkpoint(tiny_pipeline), small_pipeline(tiny_pipeline))


def test_a_weight_that_two_edits_mask_is_told(tiny_pipeline: Path) -> None:
    base = open_checkpoint(tiny_pipeline)
    text = TEXT.format(base=tiny_pipeline)
    both = text + text[text.index("  - cad:") :].replace("cat", "fish").replace("dog", "bird")
    keys = {"components": "['unet/mid_block*']", "controls": "false"}
    changes = {f"edits[{number}].cad.{key}": value for number in (0, 1) for key, value in keys.items()}
    changes["edits[1].cad.selection"] = "{ratio: 0.5, strength: 0.5}"
    recipe = parse_recipe(both, overrides=changes)
    models = load_pipeline(tiny_pipeline)
    computed = compute_patch(recipe, plan_recipe(recipe, base), base, models, None)
    (finding,) = computed.findings
    assert finding.subject == "edits[0] (cad erase) and edits[1] (cad erase)"
    first, second = (outcome.delta.terms for outcome in computed.outcomes)
    shared = sum(len(indices(first[name]) & indices(second[name])) for name in first)
    assert shared > 0
    assert f"both mask {shared} weights" in finding.message


def indices(form: Form) -> set[int]:
    assert isinstance(form, Rescale)
    assert form.places.index is not None
    return set(form.places.index.tolist())


def test_the_patch_of_a_mask_is_applied_and_taken_out_to_the_byte(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    base, recipe = open_checkpoint(tiny_pipeline), parsed(tiny_pipeline, components="['unet/mid_block*']")
    models = load_pipeline(tiny_pipeline)
    computed = compute_patch(recipe, plan_recipe(recipe, base), base, models, Store(tmp_path / "store"))
    save_patch(computed.patch, tmp_path / "patch")
    patch = load_patch(tmp_path / "patch")
    assert apply_patch(patch, tiny_pipeline, tmp_path / "edited", undo=tmp_path / "undo").exact
    edited = open_checkpoint(tmp_path / "edited")
    for name, change in patch.changes.items():
        zeros = int((edited.read(name) == 0).sum() - (base.read(name) == 0).sum())
        assert zeros == change.changed > 0
    revert_patch(patch, tmp_path / "edited", tmp_path / "reverted", undo=tmp_path / "undo")
    assert contents(tmp_path / "reverted") == contents(tiny_pipeline)
    masks: Any = computed.outcomes[0].report["masks"]
    assert [mask["concepts"] for mask in masks] == [["cat"], ["dog"]]
    made: Any = patch.provenance["made"]
    assert [one["source"] for one in made] == [term.source for term in patch.terms]
    assert [one["attribution"]["objective"] for one in made] == ["base_gap"]
    assert sum(mask["weights"] for mask in made[0]["masks"]) >= sum(
        change.changed for change in patch.changes.values()
    )


def test_a_mask_and_a_closed_form_edit_are_one_patch(tiny_pipeline: Path, tmp_path: Path) -> None:
    closed = "  - distill:\n      preset: closed-form\n      concepts: [{source: fish, scale: 0}]\n"
    recipe = parse_recipe(
        TEXT.format(base=tiny_pipeline) + closed,
        overrides={"edits[0].cad.components": "['unet/mid_block*ff*']", "edits[0].cad.controls": "false"},
    )
    base, models = open_checkpoint(tiny_pipeline), load_pipeline(tiny_pipeline)
    computed = compute_patch(recipe, plan_recipe(recipe, base), base, models, None)
    masked, added = (set(outcome.delta.terms) for outcome in computed.outcomes)
    assert masked
    assert added
    assert not masked & added
    save_patch(computed.patch, tmp_path / "patch")
    patch = load_patch(tmp_path / "patch")
    assert set(patch.changes) == masked | added
    assert apply_patch(patch, tiny_pipeline, tmp_path / "edited", undo=tmp_path / "undo").exact
    revert_patch(patch, tmp_path / "edited", tmp_path / "back", undo=tmp_path / "undo")
    assert contents(tmp_path / "back") == contents(tiny_pipeline)


def test_what_a_patch_erased_is_amplified_on_top_of_it(tiny_pipeline: Path, tmp_path: Path) -> None:
    first = parsed(tiny_pipeline, components="['unet/mid_block*ff*']", controls="false")
    base, models = open_checkpoint(tiny_pipeline), load_pipeline(tiny_pipeline)
    save_patch(compute_patch(first, plan_recipe(first, base), base, models, None).patch, tmp_path / "first")
    apply_patch(load_patch(tmp_path / "first"), tiny_pipeline, tmp_path / "edited")
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(noise.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    changes = {
        "edits[0].cad.kind": "amplify",
        "edits[0].cad.concepts": "[{source: cat, images: [a.png, b.png]}]",
        "edits[0].cad.attribution": "{graded_steps: 2}",
        "edits[0].cad.components": "['unet/mid_block*ff*']",
        "after": "[first]",
    }
    text = TEXT.format(base=tmp_path / "edited")
    recipe = parse_recipe(text, path=tmp_path / "recipe.yaml", overrides=changes)
    edited = open_checkpoint(tmp_path / "edited")
    computed = compute_patch(
        recipe, plan_recipe(recipe, edited), edited, load_pipeline(tmp_path / "edited"), None
    )
    (outcome,) = computed.outcomes
    assert "drawn-when-erased" not in {finding.kind for finding in outcome.findings}
    # weights that the first mask took have no score, and are in no other mask
    gone = {name: (edited.read(name) == 0).flatten() for name in outcome.delta.terms}
    assert sum(len(indices(form)) for form in outcome.delta.terms.values()) > 0
    for name, form in outcome.delta.terms.items():
        assert not bool(gone[name][sorted(indices(form))].any())
    apply_patch(computed.patch, tmp_path / "edited", tmp_path / "amplified", undo=tmp_path / "undo")
    revert_patch(computed.patch, tmp_path / "amplified", tmp_path / "back", undo=tmp_path / "undo")
    assert contents(tmp_path / "back") == contents(tmp_path / "edited")
