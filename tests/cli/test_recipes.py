"""The verbs about recipes: recipes, show, copy, check."""

from pathlib import Path

import pytest

from surgery.recipe import load_recipe, recipe_schema
from surgery.shelf import recipe_names, recipe_path
from tests.cli.conftest import Call

BAD = """\
surgery: 1
base: {base}
edits:
  - emcid:
      concepts: []
      offsets: {{stpes: 5}}
seed: one
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A good recipe whose base is a folder beside it."""
    (tmp_path / "model").mkdir()
    path = tmp_path / "good.yaml"
    concept = "{source: cat, destination: dog}"
    path.write_text(f"surgery: 1\nbase: model\nedits: [{{emcid: {{concepts: [{concept}]}}}}]\n")
    return path


def test_recipes_lists_every_name_with_its_title(surgery: Call) -> None:
    lines = surgery("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    quickstart = next(line for line in lines if line.startswith("quickstart"))
    assert quickstart.endswith(f"  {load_recipe('quickstart').title}")


def test_recipes_as_json(surgery: Call) -> None:
    entries = surgery("recipes", "--json").json
    assert [entry["name"] for entry in entries] == recipe_names()
    assert all(entry["title"] for entry in entries)


def test_the_schema_is_printed_as_json(surgery: Call) -> None:
    assert surgery("recipes", "schema").json == recipe_schema()


def test_show_prints_the_recipe_to_the_letter(surgery: Call) -> None:
    assert surgery("show", "quickstart").out == recipe_path("quickstart").read_text(encoding="utf-8")


def test_show_of_what_is_no_text_is_1(surgery: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"surgery: 1 # \xe9\n")
    done = surgery("show", tmp_path / "bad.yaml")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("bad.yaml: byte 13 is no UTF-8. Save the recipe as UTF-8.\n")


def test_copy_makes_a_file_that_is_the_same(
    surgery: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert surgery("copy", "erase/objects").out == "objects.yaml\n"
    assert surgery("copy", "erase/objects", "mine.yaml").out == "mine.yaml\n"
    assert Path("mine.yaml").read_bytes() == Path("objects.yaml").read_bytes()
    assert load_recipe("mine.yaml").digest == load_recipe("erase/objects").digest


def test_copy_replaces_nothing_without_being_told(surgery: Call, tmp_path: Path) -> None:
    place = tmp_path / "quickstart.yaml"
    place.write_text("mine")
    assert surgery("copy", "quickstart", tmp_path).code == 1
    assert place.read_text() == "mine"
    assert surgery("copy", "quickstart", tmp_path, "--overwrite").code == 0
    assert place.read_bytes() == recipe_path("quickstart").read_bytes()


SCALED = """surgery: 1
base: pocket-sd
guide:
  scaling_concept: {concept: cat, images: [cat.png, more/dog.png]}
"""


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    """A recipe with two pictures of its own."""
    (tmp_path / "own" / "more").mkdir(parents=True)
    for name in ("cat.png", "more/dog.png"):
        (tmp_path / "own" / name).write_bytes(name.encode())
    place = tmp_path / "own" / "scaled.yaml"
    place.write_text(SCALED)
    return place


def test_copy_takes_along_what_the_recipe_names_beside_it(
    surgery: Call, scaled: Path, tmp_path: Path
) -> None:
    assert surgery("copy", scaled, tmp_path / "new" / "mine.yaml").code == 0
    for name in ("cat.png", "more/dog.png"):
        assert (tmp_path / "new" / name).read_bytes() == name.encode()
    assert surgery("check", tmp_path / "new" / "mine.yaml").code == 0
    # the same pictures may lie there already
    assert surgery("copy", scaled, tmp_path / "new" / "other.yaml").code == 0


def test_copy_replaces_no_picture_and_then_copies_nothing(
    surgery: Call, scaled: Path, tmp_path: Path
) -> None:
    (tmp_path / "new" / "more").mkdir(parents=True)
    own = tmp_path / "new" / "more" / "dog.png"
    own.write_text("mine")
    done = surgery("copy", scaled, tmp_path / "new" / "mine.yaml")
    assert done.code == 1
    assert "dog.png exists already" in done.err
    assert [one.name for one in (tmp_path / "new").rglob("*") if one.is_file()] == ["dog.png"]
    assert own.read_text() == "mine"


def test_copy_of_a_recipe_with_faults_copies_the_text(surgery: Call, scaled: Path, tmp_path: Path) -> None:
    (scaled.parent / "cat.png").unlink()
    assert surgery("copy", scaled, tmp_path / "mine.yaml").code == 0
    assert (tmp_path / "mine.yaml").read_text() == SCALED


def test_check_says_that_a_good_recipe_is_good(surgery: Call, good: Path) -> None:
    done = surgery("check", good)
    assert (done.code, done.err) == (0, "")
    assert "good; 1 concepts" in done.out


def test_check_as_json_tells_digest_and_base(surgery: Call, good: Path) -> None:
    assert surgery("check", good, "--json").json == {
        "recipe": str(good),
        "faults": [],
        "digest": load_recipe(good).digest,
        "base": str(good.parent / "model"),
        "concepts": 1,
    }


def test_check_reports_all_faults_at_once(surgery: Call, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD.format(base="pocket-sd"))
    done = surgery("check", path)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        "surgery: 3 faults:",
        f"- {path}:5: edits[0].emcid.concepts: found a list of 0, expected at least 1.",
        f"- {path}:6: edits[0].emcid.offsets.stpes: unknown key. Did you mean 'steps'?",
        f"- {path}:7: seed: found the text 'one', expected a whole number.",
    ]


def test_check_as_json_lists_the_faults_apart(surgery: Call, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD.format(base="pocket-sd"))
    done = surgery("check", path, "--json")
    assert (done.code, len(done.json["faults"])) == (1, 3)


def test_check_takes_changes_from_the_command_line(surgery: Call, good: Path) -> None:
    assert surgery("check", good, "--set", "seed=3").code == 0
    done = surgery("check", good, "--set", "sead=3")
    assert (done.code, done.err) == (1, "surgery: --set sead: unknown key. Did you mean 'seed'?\n")


def test_check_looks_for_the_base(surgery: Call, good: Path, tmp_path: Path) -> None:
    (tmp_path / "model").rmdir()
    assert surgery("check", good).code == 1
    assert surgery("check", good, "--base", tmp_path).code == 0
    assert surgery("check", good, "--base", tmp_path / "none").code == 1


def test_a_doubled_key_is_reported_by_check(surgery: Call, good: Path) -> None:
    good.write_text(good.read_text() + "base: model\n")
    done = surgery("check", good)
    assert done.code == 1
    assert "key 'base' stands twice" in done.err
