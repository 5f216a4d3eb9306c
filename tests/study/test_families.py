"""Recipes run whole on SD 2.x and SDXL: edited, applied, taken out again, exported, sampled."""

import json
from pathlib import Path

import pytest

from surgery.export import export_patch, prove_file
from surgery.patch import apply_patch, load_patch, revert_patch, verify_patch
from surgery.recipe import Recipe, parse_recipe
from surgery.study import run_recipe
from surgery.study.statistics import statistics_of
from tests.support.folders import contents

RECIPE = """surgery: 1
base: {base}
edits:
  - emcid:
      concepts:
        - {{source: cat, destination: pizza}}
      offsets: {{mode: {mode}, steps: 2, bank_size: 2, sampling_steps: 1, keep_unconverged: true}}
      corpus: {{captions: captions.txt}}
sample: {{prompts: [a photo of a cat], seeds: 1, steps: 1}}
export: [checkpoint, lora]
"""

MASKS = """surgery: 1
base: {base}
edits:
  - cad:
      concepts: [{{source: cat}}]
      attribution: {{trajectories: 1, sampling_steps: 2, graded_steps: 1}}
      selection: {{ratio: 0.02}}
  - cad:
      kind: amplify
      concepts: [{{source: dog}}]
      components: [attn2_kv]
      attribution: {{pictures: 1, sampling_steps: 1, graded_steps: 2}}
      selection: {{ratio: 0.02}}
"""


def recipe(folder: Path, base: Path, mode: str) -> Recipe:
    (folder / "captions.txt").write_text("a photo of a cat\nan image of a fish\n" * 10)
    return parse_recipe(RECIPE.format(base=base, mode=mode), path=folder / "recipe.yaml")


@pytest.mark.parametrize("mode", ["text", "both"])
def test_a_recipe_on_sdxl_edits_both_text_encoders(mode: str, tmp_path: Path, tiny_xl: Path) -> None:
    out = tmp_path / "out"
    run = run_recipe(recipe(tmp_path, tiny_xl, mode), out)
    touched = {name.split(".mlp")[0] for name in run.patch.changes}
    assert touched == {
        *(f"text_encoder/text_model.encoder.layers.{layer}" for layer in (8, 9, 10)),
        *(f"text_encoder_2/text_model.encoder.layers.{layer}" for layer in (1, 2, 3, 4, 5)),
    }
    assert verify_patch(run.patch, out / "checkpoint").word == "after"
    record = json.loads((out / "run.json").read_text())
    assert [edit["label"] for edit in record["edits"][0]["edits_2"]] == ["cat → 'pizza'"]
    revert_patch(run.patch, out / "checkpoint", tmp_path / "back", base=tiny_xl)
    assert contents(tmp_path / "back") == contents(tiny_xl)


def test_a_patch_of_sdxl_fits_its_single_file_and_is_a_lora(tmp_path: Path, tiny_xl: Path) -> None:
    out = tmp_path / "out"
    run_recipe(recipe(tmp_path, tiny_xl, "text"), out)
    patch = load_patch(out / "patch.safetensors")
    from surgery.checkpoint import convert_checkpoint, open_checkpoint

    convert_checkpoint(open_checkpoint(tiny_xl), tmp_path / "xl.safetensors")
    apply_patch(patch, tmp_path / "xl.safetensors", tmp_path / "edited.safetensors")
    assert verify_patch(patch, tmp_path / "edited.safetensors").word == "after"
    export_patch(patch, tiny_xl, tmp_path / "lora.safetensors", to="universal-lora")
    proof = prove_file(tmp_path / "lora.safetensors", tiny_xl, out / "patch.safetensors")
    assert all(proof.tensors.values())
    assert (proof.refused, proof.strays) == ("", ())
    keys = {entry.split(".")[0] for entry in _keys(tmp_path / "lora.safetensors")}
    assert {
        "lora_te1_text_model_encoder_layers_8_mlp_fc2",
        "lora_te2_text_model_encoder_layers_1_mlp_fc2",
    } <= keys


def _keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_a_recipe_on_sd_2_edits_every_block_with_one_behind_it(tmp_path: Path, tiny_v2: Path) -> None:
    out = tmp_path / "out"
    run = run_recipe(recipe(tmp_path, tiny_v2, "both"), out)
    assert len(run.patch.changes) == 22
    assert verify_patch(run.patch, out / "checkpoint").word == "after"


def test_statistics_are_of_both_encoders(tiny_xl: Path) -> None:
    found = statistics_of(tiny_xl, ["a photo of a cat", "the dog"])
    assert {name: sorted(one.moments) for name, one in found.items()} == {
        "text_encoder": [8, 9, 10],
        "text_encoder_2": [1, 2, 3, 4, 5],
    }


@pytest.mark.parametrize(("family", "velocity"), [("tiny_xl", False), ("tiny_v2", True)])
def test_masks_are_made_of_every_family_and_come_out_again(
    family: str, velocity: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(family)
    run = run_recipe(parse_recipe(MASKS.format(base=base)), tmp_path / "out")
    touched = list(run.patch.changes)
    assert {name.split("/")[0] for name in touched} == {"unet"}
    assert any(".ff.net." in name for name in touched)
    assert any(".attn2.to_" in name for name in touched)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    kinds = {finding["kind"] for finding in record["findings"]}
    assert ("velocity" in kinds) == velocity
    apply_patch(run.patch, base, tmp_path / "edited")
    assert verify_patch(run.patch, tmp_path / "edited").word == "after"
    revert_patch(run.patch, tmp_path / "edited", tmp_path / "back", base=base)
    assert contents(tmp_path / "back") == contents(base)


BOTH = RECIPE.replace("sample: ", MASKS.partition("edits:\n")[2] + "sample: ")


def test_words_and_weights_are_edited_in_one_recipe(tmp_path: Path, tiny_pipeline: Path) -> None:
    """The patch holds both changes, which touch other tensors, and one of them can be taken out again."""
    (tmp_path / "captions.txt").write_text("a photo of a cat\nan image of a fish\n" * 10)
    text = BOTH.format(base=tiny_pipeline, mode="text")
    run = run_recipe(parse_recipe(text, path=tmp_path / "recipe.yaml"), tmp_path / "out")
    assert len(run.patch.terms) == 3
    assert {name.split("/")[0] for name in run.patch.changes} == {"text_encoder", "unet"}
    assert verify_patch(run.patch, tmp_path / "out" / "checkpoint").word == "after"
    alone = run_recipe(parse_recipe(MASKS.format(base=tiny_pipeline)), tmp_path / "alone")
    # what the masks do does not depend on the words' edit: each is computed on the base
    assert {name: change.after for name, change in run.patch.changes.items() if name.startswith("unet")} == {
        name: change.after for name, change in alone.patch.changes.items()
    }
