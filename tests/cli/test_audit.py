"""The verb that tells what changed: audit."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from surgery.patch import apply_patch, save_patch
from tests.cli.conftest import Call
from tests.support.folders import FC2_NAME, contents, small_weights, weight_file, write_folder
from tests.support.patches import random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def patch(base: Path, tmp_path: Path) -> Path:
    save_patch(random_patch(base, [FC2_NAME]), tmp_path / "patch.safetensors")
    return tmp_path / "patch.safetensors"


@pytest.fixture
def edited(base: Path, tmp_path: Path) -> Path:
    apply_patch(random_patch(base, [FC2_NAME]), base, tmp_path / "edited")
    return tmp_path / "edited"


def test_two_checkpoints_are_compared(surgery: Call, base: Path, edited: Path) -> None:
    before = contents(base) | contents(edited)
    done = surgery("audit", base, edited)
    assert done.code == 0
    assert done.out.startswith("1 of 6 tensors changed")
    assert FC2_NAME in done.out
    assert contents(base) | contents(edited) == before


def test_the_json_has_every_tensor_and_the_claims(surgery: Call, base: Path, edited: Path) -> None:
    done = surgery("audit", base, edited, "--json")
    assert done.code == 0
    states = {row["name"]: row["state"] for row in done.json["tensors"]}
    assert {name for name, state in states.items() if state != "same"} == {FC2_NAME}
    assert len(states) == 6
    assert done.json["sound"] is True
    assert done.json["sides"].keys() == {"base", "edited"}


def test_equal_checkpoints_differ_in_nothing(surgery: Call, base: Path) -> None:
    done = surgery("audit", base, base)
    assert done.code == 0
    assert done.out.startswith("Nothing was changed: all 6 tensors are the same.")


def test_a_patch_is_told_alone_and_with_its_base(surgery: Call, base: Path, patch: Path) -> None:
    alone = surgery("audit", patch, "--json").json
    [row] = alone["tensors"]
    assert (row["name"], row["relative"]) == (FC2_NAME, None)
    known = surgery("audit", patch, "--base", base, "--json").json
    [row] = [row for row in known["tensors"] if row["state"] == "changed"]
    assert row["relative"] > 0


def test_without_spectra_no_rank_is_told(surgery: Call, base: Path, edited: Path) -> None:
    rows = surgery("audit", base, edited, "--no-spectra", "--json").json["tensors"]
    assert {row["spectrum"] for row in rows} == {None}


def test_a_patch_that_was_expected_and_is_in_gives_0(
    surgery: Call, base: Path, edited: Path, patch: Path
) -> None:
    done = surgery("audit", base, edited, "--expect", patch, "--json")
    assert done.code == 0
    assert done.json["expected"]["state"] == "after"


def test_a_patch_that_was_expected_and_is_not_in_gives_3(surgery: Call, base: Path, patch: Path) -> None:
    done = surgery("audit", base, base, "--expect", patch)
    assert done.code == 3
    assert "it is not in; expected it to be in" in done.out


def test_a_weight_that_is_no_number_gives_3(surgery: Call, base: Path, edited: Path) -> None:
    file = weight_file(edited, "vae")
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    done = surgery("audit", base, edited, "--json")
    assert done.code == 3
    assert [finding["kind"] for finding in done.json["findings"]] == ["not-finite"]


def test_the_page_is_written_once_and_not_over_another(
    surgery: Call, base: Path, edited: Path, tmp_path: Path
) -> None:
    page = tmp_path / "audit.html"
    assert surgery("audit", base, edited, "--html", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert FC2_NAME in text
    again = surgery("audit", base, base, "--html", page)
    assert again.code == 1
    assert "exists already" in again.err
    assert again.out == ""
    assert page.read_text(encoding="utf-8") == text
    assert surgery("audit", base, base, "--html", page, "--overwrite").code == 0
    assert "Nothing was changed" in page.read_text(encoding="utf-8")


def test_nothing_stands_under_the_page_s_name_after_an_error(
    surgery: Call, base: Path, tmp_path: Path
) -> None:
    done = surgery("audit", base, tmp_path / "missing", "--html", tmp_path / "audit.html")
    assert done.code == 1
    assert "missing" in done.err
    assert not (tmp_path / "audit.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{base}"], "is no patch; name the checkpoint to compare it with"),
        (["{base}", "{edited}", "--base", "{base}"], "--base belongs to a patch"),
        (["{patch}", "--expect", "{patch}"], "--expect needs two checkpoints"),
        (["{patch}", "--other", "{base}"], "--other needs two checkpoints"),
        ([], "Missing argument"),
    ],
)
def test_arguments_that_do_not_go_together_give_2(
    surgery: Call, base: Path, edited: Path, patch: Path, words: list[str], message: str
) -> None:
    done = surgery("audit", *(word.format(base=base, edited=edited, patch=patch) for word in words))
    assert done.code == 2
    assert message in re.sub(r"\s+", " ", done.err)


@pytest.mark.parametrize("option", ["--words", "--captions"])
def test_words_of_a_patch_need_its_base(surgery: Call, patch: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "list.txt").write_text("cat\n")
    done = surgery("audit", patch, option, tmp_path / "list.txt")
    assert done.code == 1
    assert "--base" in done.err


def test_words_are_told_by_the_encoder_of_the_base(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    name = "text_encoder/text_model.encoder.layers.3.mlp.fc2.weight"
    save_patch(random_patch(tiny_pipeline, [name]), tmp_path / "patch.safetensors")
    (tmp_path / "list.txt").write_text("cat\npizza\n")
    words = ["--words", tmp_path / "list.txt"]
    done = surgery("audit", tmp_path / "patch.safetensors", "--base", tiny_pipeline, *words, "--json")
    assert done.code == 0
    assert {row["phrase"] for row in done.json["words"]["rows"]} == {"cat", "pizza"}
