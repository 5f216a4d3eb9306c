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
    # on some processors the random models' pictures round to the same
    assert 0 <= sections["quality"]["scores"]["moved"]["value"] <= 255
    assert sections["efficacy"]["judge"]["accuracy"]["concept_single_top"] > 0.9
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_probes_and_resurrection_are_told_beside_the_pictures(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--probes", "--resurrection", "--held-out", 1)
    done = surgery("evaluate", tiny_pipeline, patch, *asked, *flags, "-o", out)
    assert done.code == 0, done.err
    assert "most of it comes back through 'kitty'" in done.out
    assert "cat: probability for each unit of scale: unedited" in done.out
    record = json.loads((out / "evaluation.json").read_text())
    (probe,) = record["probes"]
    names = [score["name"] for score in probe["scores"]]
    assert {"drift", "energy", "alignment", "anchor alignment", "leak", "bystanders"} <= set(names)
    (revived,) = record["resurrection"]
    assert list(revived["slopes"]) == ["unedited", "edited", "crossed"]
    assert [len(told) for told in revived["probabilities"].values()] == [4, 4, 4]
    assert (out / "probes.png").read_bytes().startswith(b"\x89PNG")


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
    assert "evaluation.json exists already" in refused.err


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
    assert "holds other files (thesis.txt)" in done.err
    done = surgery("evaluate", "pocket-sd", patch, *asked, "-o", tmp_path / "out")
    assert done.code == 1
    assert "the patch is for another base" in done.err
    assert not (tmp_path / "out").exists()
    done = surgery("evaluate", tiny_pipeline, patch, "--suite", "updat", *asked, "-o", tmp_path / "out")
    assert "no suite 'updat'. Did you mean 'update'" in done.err


def test_a_composed_patch_remembers_all_of_its_recipes() -> None:
    from surgery.study.remembered import recipes_of

    text = RECIPE.format(base="pocket-sd")
    part, elsewhere = {"recipe": text, "overrides": {}}, {"recipe": text + "after: [gone.safetensors]\n"}
    members = [{"provenance": part}, {"provenance": {"composed": [{"provenance": elsewhere}]}}]
    assert [len(recipe.after) for recipe in recipes_of({"composed": members})] == [0, 1]


def test_the_record_says_what_it_came_from(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    from surgery.patch import load_patch, patch_digest
    from surgery.recipe import load_recipe

    out = tmp_path / "out"
    done = surgery("evaluate", tiny_pipeline, patch, *asked, "--dtype", "float16", "-o", out)
    assert done.code == 0, done.err
    record = json.loads((out / "evaluation.json").read_text())
    assert record["machine"]["dtype"] == "float16"
    sources = record["sources"]
    assert sources["patch"] == patch_digest(load_patch(patch))
    assert sources["recipes"] == [load_recipe(str(tmp_path / "recipe.yaml")).digest]
    assert sources["judge"]["name"] == "pocket-judge"


def test_what_cannot_be_measured_is_said_before_anything_is_drawn(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(*words: object) -> str:
        done = surgery("evaluate", *asked, *words, "-o", out)
        assert done.code in (1, 2)
        assert not out.exists()
        return done.err

    (tmp_path / "file").write_text("")
    assert "a folder for stored pictures" in refused(tiny_pipeline, patch, "--cache", tmp_path / "file")
    assert "expected a finite number of at least 0" in refused(tiny_pipeline, patch, "--guidance", "nan")
    assert "holds the same weights" in refused(tiny_pipeline, tiny_pipeline)


def test_a_type_in_which_the_patch_has_no_place_is_refused_in_a_line(
    surgery: Call, patch: Path, asked: tuple[object, ...], tmp_path: Path, tiny_pipeline: Path
) -> None:
    done = surgery("evaluate", tiny_pipeline, patch, *asked, "--dtype", "bfloat16", "-o", tmp_path / "out")
    assert done.code == 1
    assert "dtype is bfloat16, and the base has the weights to edit in float" in done.err


def test_names_that_the_judge_does_not_know_are_named_and_doubled_edits_counted_once(
    surgery: Call, tiny_pipeline: Path, patch: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    text = (tmp_path / "recipe.yaml").read_text()
    twice = text.replace("concepts: [{", "concepts: [{source: cat, destination: pizza}, {")
    unknown = twice.replace("concepts: [", "concepts: [{source: dog, destination: zorblax}, ")
    (tmp_path / "recipe.yaml").write_text(unknown.replace(', templates: ["A photo of {}"]', ""))
    out = tmp_path / "out"
    done = surgery("evaluate", tiny_pipeline, patch, *asked, "--suite", "erase", "-o", out)
    assert done.code == 0, done.err
    assert "dog: the judge does not know 'zorblax'" in done.out
    record = json.loads((out / "evaluation.json").read_text())
    titles = [change["title"] for change in record["sections"]["generalisation"]["changes"]]
    assert titles == ["dog → nothing", "cat → pizza"]


def test_a_recipe_beside_what_the_patch_remembers_is_warned_of() -> None:
    from dataclasses import dataclass
    from typing import Any

    from surgery.recipe import parse_recipe
    from surgery.study.remembered import edits_of

    @dataclass
    class Remembering:
        provenance: dict[str, Any]

    text = RECIPE.format(base="pocket-sd")
    both = text.replace("concepts: [", "concepts: [{source: dog, destination: moon}, ")
    remembering: Any = Remembering({"recipe": both, "overrides": {}})
    told = edits_of(remembering, parse_recipe(text), Path("patch"))
    assert [one.source for one in told.asked] == ["cat"]
    assert "moon" in told.preserved
    assert told.beside == ("dog",)
    (finding,) = told.findings
    assert "does not name what the patch was made to edit: dog." in finding.message
    assert edits_of(remembering, parse_recipe(both), Path("patch")).findings == ()


def test_names_of_several_axes_come_from_json(tmp_path: Path) -> None:
    from surgery.cli.verbs.evaluate import _questions
    from surgery.errors import JudgeError

    path = tmp_path / "names.json"
    path.write_text(json.dumps({"concept": ["cat", "dog"], "gender": ["woman", "man"]}))
    asked = _questions(path)
    assert asked.names()["gender"] == ("woman", "man")
    assert asked.concepts == ("cat", "dog")
    for text in ('{"shape": ["round"]}', '["cat"]', '{"concept": [1]}', "{"):
        path.write_text(text)
        with pytest.raises(JudgeError, match=r"names\.json"):
            _questions(path)


def test_a_remembered_recipe_that_no_longer_reads_does_not_stand_in_the_way_of_the_one_given() -> None:
    from dataclasses import dataclass
    from typing import Any

    from surgery.recipe import parse_recipe
    from surgery.study.remembered import edits_of

    @dataclass
    class Remembering:
        provenance: dict[str, Any]

    text = RECIPE.format(base="pocket-sd")
    older: Any = Remembering({"recipe": text + "nonsense: 1\n", "overrides": {}})
    assert [one.source for one in edits_of(older, parse_recipe(text), Path("patch")).asked] == ["cat"]
    other = text.replace("A photo of", "A painting of")
    same: Any = Remembering({"recipe": other, "overrides": {}})
    assert edits_of(same, parse_recipe(text), Path("patch")).findings == ()
