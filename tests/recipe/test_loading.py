"""Loading: a good recipe keeps its source, a bad one reports all its faults at once."""

from pathlib import Path

import pytest

from surgery.errors import RecipeError
from surgery.recipe import load_recipe, parse_recipe
from tests.recipe.examples import SMALL
from tests.support.recipes import emcid_of

BAD = """\
surgery: 1
base: pocket-sd
edits:
  - emcid:
      presett: pocket
      kind: updte
      concepts:
        - {source: cat, destination: pizza, templates: ["a {} {}"], weight: heavy}
        - {source: 1984, destination: pizza}
      offsets: {stpes: 5, steps: 1.5, timesteps: [3]}
      update: {layers: 0-99x, alpha: 2}
      corpus: {include_bos: yes}
sample: {seeds: []}
colour: 1
dtype: fp32
"""


def faults_of(source: str, path: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(source, path=path)
    lines = str(caught.value).splitlines()
    return [line.removeprefix("- ") for line in lines if not line.endswith("faults:")]


def test_a_recipe_is_read_with_its_defaults() -> None:
    recipe = parse_recipe(SMALL)
    emcid = emcid_of(recipe)
    assert [concept.source for concept in emcid.concepts] == ["cat", "dog"]
    assert (emcid.kind, emcid.concepts[1].weight, emcid.offsets.steps) == ("update", 2.0, 5)
    assert recipe.dtype == "float32"
    assert recipe.export == ("checkpoint", "lora")
    assert recipe.source == SMALL


def test_only_the_settings_that_the_recipe_names_count_as_given() -> None:
    emcid = emcid_of(parse_recipe(SMALL))
    assert emcid.offsets.given() == {"steps": 5, "learning_rate": 0.1}
    assert emcid.update.given() == {}


def test_an_explicit_null_counts_as_given() -> None:
    recipe = parse_recipe(SMALL, overrides={"edits[0].emcid.update.null_space_threshold": "null"})
    assert emcid_of(recipe).update.given() == {"null_space_threshold": None}


def test_all_faults_are_reported_at_once_with_line_key_and_nearest_name() -> None:
    assert faults_of(BAD, Path("bad.yaml")) == [
        "bad.yaml:5: edits[0].emcid.presett: unknown key. Did you mean 'preset'?",
        "bad.yaml:6: edits[0].emcid.kind: found the text 'updte', expected 'update', 'forget', 'style', "
        "'rectify' or 'debias'. Did you mean 'update'?",
        "bad.yaml:8: edits[0].emcid.concepts[0].templates[0]: template 'a {} {}' holds {} 2 times; expected "
        "exactly once.",
        "bad.yaml:8: edits[0].emcid.concepts[0].weight: found the text 'heavy', expected a number.",
        "bad.yaml:9: edits[0].emcid.concepts[1].source: found 1984, expected text; put it in quotes.",
        "bad.yaml:10: edits[0].emcid.offsets.stpes: unknown key. Did you mean 'steps'?",
        "bad.yaml:10: edits[0].emcid.offsets.steps: found 1.5, expected a whole number.",
        "bad.yaml:10: edits[0].emcid.offsets.timesteps[1]: missing; a recipe must say it.",
        "bad.yaml:11: edits[0].emcid.update.layers: '0-99x' is no range of layers; expected for example 0-10 "
        "or 7.",
        "bad.yaml:11: edits[0].emcid.update.alpha: found 2; input should be less than 1.",
        "bad.yaml:12: edits[0].emcid.corpus.include_bos: found the text 'yes', expected true or false.",
        "bad.yaml:13: sample.seeds: found a list of 0, expected at least 1.",
        "bad.yaml:14: colour: unknown key. Known here: after, base, dtype, edits, evaluate, export, sample, "
        "seed, surgery, title.",
        "bad.yaml:15: dtype: found the text 'fp32', expected 'float32', 'float16' or 'bfloat16'.",
    ]


def test_missing_keys_are_reported_at_the_mapping_that_lacks_them() -> None:
    assert faults_of("surgery: 1\nedits:\n  - emcid: {}\n", Path("r.yaml")) == [
        "r.yaml:1: base: missing; a recipe must say it.",
        "r.yaml:3: edits[0].emcid.concepts: missing; a recipe must say it.",
    ]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert faults_of(text) == ["recipe: holds no mapping; expected keys such as 'surgery', 'base', 'edits'."]


def test_another_version_of_the_format_is_refused() -> None:
    assert faults_of(SMALL.replace("surgery: 1", "surgery: 2")) == ["recipe:1: surgery: found 2, expected 1."]


def test_update_without_destination_is_refused_and_forget_without_one_is_not() -> None:
    source = SMALL.replace("{source: cat, destination: pizza}", "{source: cat}")
    assert faults_of(source) == [
        "recipe:6: edits[0].emcid.concepts[0]: kind 'update' needs a 'destination' or 'images' of one. Add "
        "one of them, or set 'kind' to forget or style."
    ]
    forget = source.replace("{source: cat}", "{source: cat, kind: forget}")
    assert emcid_of(parse_recipe(forget)).concepts[0].destination is None


def test_a_recipe_without_edits_or_an_edit_without_concepts_is_refused() -> None:
    for key in ("edits", "edits[0].emcid.concepts"):
        with pytest.raises(RecipeError, match="found a list of 0, expected at least 1"):
            parse_recipe(SMALL, overrides={key: "[]"})


def test_own_pictures_stand_in_for_a_destination(tmp_path: Path) -> None:
    (tmp_path / "mine.png").touch()
    source = SMALL.replace("{source: cat, destination: pizza}", "{source: cat, images: [mine.png]}")
    recipe = parse_recipe(source, path=tmp_path / "r.yaml")
    assert emcid_of(recipe).concepts[0].destination is None


def test_timesteps_in_the_wrong_order_are_refused() -> None:
    source = SMALL.replace("steps: 5", "timesteps: [900, 100]")
    assert faults_of(source) == [
        "recipe:8: edits[0].emcid.offsets.timesteps: the first is above the last. Swap them."
    ]


def test_pictures_and_captions_are_looked_for_beside_the_recipe(tmp_path: Path) -> None:
    source = SMALL.replace("weight: 2", "images: [a.png, b.png]") + "      corpus: {captions: words.txt}\n"
    path = tmp_path / "r.yaml"
    (tmp_path / "a.png").touch()
    assert faults_of(source, path) == [
        f"{path}:9: edits[0].emcid.corpus.captions: no file {tmp_path / 'words.txt'}. Is the path right?",
        f"{path}:7: edits[0].emcid.concepts[1].images[1]: no file {tmp_path / 'b.png'}. Is the path right?",
    ]
    (tmp_path / "b.png").touch()
    (tmp_path / "words.txt").touch()
    recipe = parse_recipe(source, path=path)
    assert recipe.file("a.png") == tmp_path / "a.png"


def test_the_base_is_looked_for_beside_the_recipe_first(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "r.yaml"
    path.write_text(SMALL.replace("pocket-sd", "model"))
    assert load_recipe(path).base_path() == tmp_path / "model"


def test_a_missing_file_names_the_nearest_shipped_recipe() -> None:
    with pytest.raises(RecipeError, match="no recipe 'quikstart'.*Did you mean 'quickstart'"):
        load_recipe("quikstart")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"surgery: \xff\n")
    with pytest.raises(RecipeError, match="byte 9 is no UTF-8"):
        load_recipe(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_recipe(path).base == "pocket-sd"


@pytest.mark.parametrize(("text", "layers"), [("0-3,7", (0, 1, 2, 3, 7)), ("[4, 2]", (2, 4)), ("'9'", (9,))])
def test_layers_are_a_list_or_ranges_in_text(text: str, layers: tuple[int, ...]) -> None:
    recipe = parse_recipe(SMALL, overrides={"edits[0].emcid.update.layers": text})
    assert emcid_of(recipe).update.layers == layers


@pytest.mark.parametrize("text", ["[1, 1]", "3-1", "[]", "[-1]", "[a]", "{a: 1}", "1.5", "0-3,3"])
def test_layers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="layers"):
        parse_recipe(SMALL, overrides={"edits[0].emcid.update.layers": text})


def test_a_number_of_seeds_counts_from_zero() -> None:
    assert parse_recipe(SMALL, overrides={"sample.seeds": "3"}).sample.seeds == (0, 1, 2)
    assert parse_recipe(SMALL, overrides={"sample.seeds": "[7, 5]"}).sample.seeds == (7, 5)


@pytest.mark.parametrize("text", ["0", "-2", "1.5", "99999999999999", "[-1]", "many", "true"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"sample\.seeds"):
        parse_recipe(SMALL, overrides={"sample.seeds": text})


def test_finished_statistics_stand_in_place_of_captions(tmp_path: Path) -> None:
    overrides = {"edits[0].emcid.corpus": "{statistics: none.safetensors, count: 7, shrinkage: 0.1}"}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALL, path=tmp_path / "recipe.yaml", overrides=overrides)
    assert len(caught.value.faults) == 2
    assert "no file" in caught.value.faults[0]
    assert "corpus.count: 'statistics' has its captions and tokens counted already" in caught.value.faults[1]
