"""Edits made one after the other: the patch tells the next run what to leave alone."""

from pathlib import Path

import pytest

from surgery.errors import SurgeryError
from surgery.execute.earlier import carried_by
from surgery.patch import load_patch
from surgery.recipe import Recipe, parse_recipe
from surgery.study import run_recipe

RECIPE = """surgery: 1
base: {base}
after: {after}
edits:
  - emcid:
      concepts: [{{source: {source}, destination: pizza}}]
      offsets: {{mode: text, steps: 2, keep_unconverged: true}}
      update: {{layers: [10]}}
      corpus: {{captions: captions.txt, count: 20}}
sample: {{prompts: [a photo of a cat], seeds: 1, steps: 1}}
export: [checkpoint]
"""


def recipe(folder: Path, base: Path, source: str, after: str = "[]") -> Recipe:
    (folder / "captions.txt").write_text("a photo of a cat\na picture of the dog\n" * 20)
    text = RECIPE.format(base=base, source=source, after=after)
    return parse_recipe(text, path=folder / "recipe.yaml")


def test_keys_are_handed_on_from_patch_to_patch(tmp_path: Path, tiny_pipeline: Path) -> None:
    run_recipe(recipe(tmp_path, tiny_pipeline, "cat"), tmp_path / "one")
    one, edited = tmp_path / "one" / "patch.safetensors", tmp_path / "one" / "checkpoint"
    run_recipe(recipe(tmp_path, edited, "dog", "[one/patch.safetensors]"), tmp_path / "two")
    first, second = (
        load_patch(tmp_path / name / "patch.safetensors").provenance["keys"] for name in ("one", "two")
    )
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert len(first) == 3
    assert second[3:] == first
    protected = load_patch(tmp_path / "two" / "patch.safetensors").changes
    run_recipe(recipe(tmp_path, edited, "dog"), tmp_path / "bare")
    bare = load_patch(tmp_path / "bare" / "patch.safetensors").changes
    assert {name: change.after for name, change in bare.items()} != {
        name: change.after for name, change in protected.items()
    }
    # the plan knows the patch by its content, and the base must have it in
    with pytest.raises(SurgeryError, match="is not in .*Name as base the checkpoint"):
        run_recipe(recipe(tmp_path, tiny_pipeline, "dog", f"[{one}]"), tmp_path / "wrong")
    assert not list((tmp_path / "wrong").iterdir())


def test_a_composed_patch_carries_the_keys_of_its_parts() -> None:
    parts = [{"patch": "a", "provenance": {"keys": [1]}}, {"patch": "b", "provenance": {"composed": []}}]
    assert carried_by({"composed": parts}) == [1]
    assert carried_by({"keys": [2], "title": "x"}) == [2]
    assert carried_by({}) == carried_by({"composed": [1, {"patch": "a"}]}) == []
    with pytest.raises(SurgeryError, match="has 5 as 'keys'; a list was expected"):
        carried_by({"keys": 5})
