from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.errors import JudgeError
from surgery.judge import Labels, Verdicts, load_judge, measure_accuracy
from tests.judge.conftest import Build

LABELS = Labels(concept=("cat", "dog"), merged={"hound": "dog"})


class RedJudge:
    """Takes the share of red for its belief in a cat, and the rest for a dog."""

    name = "red"
    labels = LABELS
    accuracy: dict[str, float] = {}  # noqa: RUF012 - a stand-in, never changed

    def score(self, pictures: np.ndarray[Any, Any]) -> Verdicts:
        red = pictures[..., 0].mean(axis=(1, 2)) / 255
        none = np.zeros((len(pictures), 0), np.float32)
        concept = np.stack([red, 0.45 * np.ones_like(red)], axis=1).astype(np.float32)
        return Verdicts(labels=LABELS, concept=concept, style=none, background=none, gender=none, skin=none)


def put(folder: Path, name: str, number: int, red: int, side: int = 8, suffix: str = "png") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (red, 0, 0)).save(folder / name / f"{number:03d}.{suffix}")


def test_accuracy_is_the_share_of_pictures_that_show_their_folders_name(tmp_path: Path) -> None:
    for number, red in enumerate([255, 200, 140, 120, 100, 0]):
        put(
            tmp_path, "cat", number, red, side=8 if number % 2 else 6
        )  # cats: top 4 (120/255 > 0.45), shown 3
    for number, red in enumerate([0, 30, 255, 255]):
        put(tmp_path, "hound", number, red)  # dogs: top 2, never shown
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    accuracy = measure_accuracy(RedJudge(), tmp_path)
    assert accuracy == {"labelled_top": 6 / 10, "labelled_shown": 3 / 10}


def test_names_that_the_judge_does_not_know_are_all_refused(tmp_path: Path) -> None:
    for name in ("cat", "dgo", "moon"):
        put(tmp_path, name, 0, 0)
    with pytest.raises(JudgeError) as caught:
        measure_accuracy(RedJudge(), tmp_path)
    assert len(caught.value.faults) == 2
    assert "Did you mean 'dog'?" in str(caught.value)


def test_a_folder_without_labelled_pictures_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(JudgeError, match="no labelled pictures"):
            measure_accuracy(RedJudge(), folder)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, "cat", 0, 255)
    (tmp_path / "cat" / "torn.png").write_bytes((tmp_path / "cat" / "000.png").read_bytes()[:40])
    with pytest.raises(JudgeError, match=r"torn\.png cannot be read"):
        measure_accuracy(RedJudge(), tmp_path)


def test_a_loaded_judge_carries_the_accuracy_that_was_measured(
    tmp_path: Path, build_classifier: Build
) -> None:
    for number, red in enumerate([0, 90, 255]):
        put(tmp_path / "labelled", "cat", number, red, side=32)
        put(tmp_path / "labelled", "Tinca tinca", number, red, side=32)
    folder = build_classifier()
    judge = load_judge(folder, labelled=tmp_path / "labelled")
    # each picture has a twin of the other name, so the judge is right on as many as it gives these two names
    solid = np.stack([np.full((32, 32, 3), (red, 0, 0), np.uint8) for red in (0, 90, 255)])
    named = [name in ("cat", "tench") for name in load_judge(folder).score(solid).likeliest()]
    assert judge.accuracy == {"labelled_top": sum(named) / 6, "labelled_shown": sum(named) / 6}
