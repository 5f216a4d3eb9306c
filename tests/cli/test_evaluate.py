"""The verb evaluate, on a tiny pipeline whose pictures show nothing: what it asks, writes and refuses."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call

WORDS = {
    "concepts": [
        {"name": "cat", "subgroup": "animal", "aliases": ["kitty"]},
        {"name": "dog", "subgroup": "animal", "aliases": []},
        {"name": "pizza", "subgroup": "food", "aliases": []},
    ],
    "templates": {"train": ["a photo of {}"], "test": ["here is {}", "look: {}"]},
}
RECIPE = """surgery: 1
base: {base}
edits:
  - emcid:
      concepts: [{{source: cat, destination: pizza, templates: ["A photo of {{}}"]}}]
"""
FEW = ("--steps", 1, "--samples", 1, "--guidance", 1)


@pytest.fixture
def asked(tmp_path: Path, tiny_pipeline: Path) -> tuple[object, ...]:
    (tmp_path / "words.json").write_text(json.dumps(WORDS))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_pipeline))
    return "--recipe", tmp_path / "recipe.yaml", "--words", tmp_path / "words.json", *FEW


def test_suites_are_measured_and_written(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    suites = [text for name in ("update", "quality", "neighbours") for text in ("--suite", name)]
    out = tmp_path / "out"
    done = surgery("evaluate", tiny_pipeline, patch, *suites, *asked, "-o", out, "--json")
    assert done.code == 0, done.err
    record = json.loads((out / "evaluation.json").read_text())
    assert done.json == record
    sections = record["sections"]
    assert list(sections) == ["efficacy", "generalisation", "aliases", "held out", "quality", "neighbours"]
    assert sections["efficacy"]["changes"][0]["title"] == "cat → pizza"
    assert sections["aliases"]["changes"][0]["subject"] == "kitty"
    assert [row["subject"] for row in sections["held out"]["held_out"]] == ["dog"]
    assert sorted(row["subject"] for row in sections["neighbours"]["held_out"]) == ["dog", "pizza"]
    assert sections["quality"]["scores"]["moved"]["value"] > 0
    assert sections["efficacy"]["judge"]["accuracy"]["concept_single_top"] > 0.9
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_debiased_phrases_are_counted_by_group_without_being_asked(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    path = tmp_path / "shares.yaml"
    path.write_text(
        f"""surgery: 1
base: {tiny_pipeline}
edits:
  - emcid:
      kind: debias
      concepts: [{{source: doctor, shares: {{gender: [woman, man]}}}}]
"""
    )
    out = tmp_path / "out"
    done = surgery(
        "evaluate", tiny_pipeline, patch, *asked, "--recipe", path, "--group-samples", 2, "-o", out
    )
    assert done.code == 0, done.err
    assert "mean deviation from the target shares, before" in done.out
    record = json.loads((out / "evaluation.json").read_text())
    assert list(record["sections"]) == ["held out"]
    (phrase,) = record["debias"]["phrases"]
    assert [group["title"] for group in phrase["groups"]] == ["woman", "man"]
    assert record["debias"]["sampling"]["samples"] == 2
    assert "A loss of 5 points takes" in record["sections"]["held out"]["advice"]
    none = surgery("evaluate", tiny_pipeline, patch, *asked, "--suite", "debias", "-o", tmp_path / "none")
    assert none.code == 1
    assert "suite 'debias' has nothing to measure here" in none.err


def test_what_is_there_is_not_replaced_and_pictures_are_shared(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    words = ("evaluate", tiny_pipeline, patch, "--suite", "erase", *asked, "--cache", tmp_path / "cache")
    first = surgery(*words, "-o", tmp_path / "one")
    assert first.code == 0, first.err
    assert "h_c" in first.out or "h_o" in first.out
    held = sorted(path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors"))
    again = surgery(*words, "-o", tmp_path / "two")
    assert again.out.replace("/two", "/one") == first.out
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")) == held
    refused = surgery(*words, "-o", tmp_path / "one")
    assert refused.code == 1
    assert "already holds an evaluation" in refused.err


def test_edits_that_nobody_names_and_suites_without_words_are_refused(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    done = surgery("evaluate", tiny_pipeline, patch, "-o", tmp_path / "out")
    assert done.code == 1
    assert "does not say which edits were made" in done.err
    done = surgery("evaluate", tiny_pipeline, patch, "--suite", "style", *asked, "-o", tmp_path / "out")
    assert done.code == 1
    assert "suite 'style' has nothing to measure here" in done.err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_folder_of_other_things_and_another_base_are_refused(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "evaluation.png").write_bytes(b"")
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = surgery("evaluate", tiny_pipeline, patch, *asked, "-o", tmp_path / "mine", "--overwrite")
    assert done.code == 1
    assert "already holds other files (thesis.txt)" in done.err
    done = surgery("evaluate", "pocket-sd", patch, *asked, "-o", tmp_path / "out")
    assert done.code == 1
    assert "the patch is for another base" in done.err
    assert not (tmp_path / "out").exists()
    done = surgery("evaluate", tiny_pipeline, patch, "--suite", "updat", *asked, "-o", tmp_path / "out")
    assert "no suite 'updat'. Did you mean 'update'" in done.err


def test_a_composed_patch_remembers_all_of_its_recipes() -> None:
    from surgery.study.evaluation import _remembered

    text = RECIPE.format(base="pocket-sd")
    part, elsewhere = {"recipe": text, "overrides": {}}, {"recipe": text + "after: [gone.safetensors]\n"}
    members = [{"provenance": part}, {"provenance": {"composed": [{"provenance": elsewhere}]}}]
    assert [len(recipe.after) for recipe in _remembered({"composed": members})] == [0, 1]
