"""The verb statistics, and a run that takes its file."""

import json
from pathlib import Path

from surgery.methods.emcid import load_statistics
from tests.cli.conftest import Call

RECIPE = """surgery: 1
base: {base}
edits:
  - emcid:
      concepts: [{{source: cat, destination: pizza}}]
      offsets: {{mode: text, steps: 2, keep_unconverged: true}}
      update: {{layers: [10]}}
      corpus: {{statistics: c.safetensors}}
sample: {{prompts: [a photo of a cat], seeds: 1, steps: 1}}
"""


def test_statistics_are_collected_once_and_a_run_takes_them(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "captions.txt").write_text("a photo of a cat\nthe image of a dog\n" * 5)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny_pipeline))
    file, captions = tmp_path / "c.safetensors", tmp_path / "captions.txt"
    made = surgery("statistics", tiny_pipeline, "--captions", captions, "--layers", "9-10", "-o", file)
    assert (made.code, made.out) == (0, f"{file}: text_encoder, 2 layers, 770 tokens in 10 captions\n")
    (found,) = load_statistics(file).values()
    assert sorted(found.moments) == [9, 10]
    done = surgery("run", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["edits"][0]["corpus_tokens"] == 770


def test_blocks_that_are_not_there_are_refused(surgery: Call, tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a photo of a cat\n")
    options = ("--captions", tmp_path / "captions.txt", "-o", tmp_path / "x")
    done = surgery("statistics", tiny_pipeline, *options, "--layers", "12", "--layers-2", "0")
    assert done.code == 1
    assert "text_encoder has blocks 0 to 11; found [12]" in done.err
    assert "has no text_encoder_2" in done.err
    assert not (tmp_path / "x").exists()


def test_captions_that_are_none_are_refused_by_name_and_few_are_warned_of(
    surgery: Call, tiny_pipeline: Path, tmp_path: Path
) -> None:
    captions, out = tmp_path / "captions.txt", tmp_path / "x"
    captions.write_text("\n \n")
    words = ("statistics", tiny_pipeline, "--captions", captions, "-o", out)
    done = surgery(*words)
    assert done.code == 1
    assert f"{captions} holds no caption" in done.err
    for weight in ("nan", "inf", "0", "-1", "x"):
        done = surgery(*words, "--word-weight", weight)
        assert done.code == 2
        assert "expected a finite number above 0" in done.err
    assert not out.exists()
    captions.write_text("a photo of a cat\n")
    done = surgery(*words)
    assert done.code == 0
    assert "Give more captions" in done.err
