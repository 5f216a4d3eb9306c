from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.errors import JudgeError
from surgery.judge import Questions, Trait, load_judge

QUESTIONS = Questions(
    concepts=("cat", "dog", "pizza"),
    others={"gender": ("female doctor", "male doctor")},
    template="a picture of the {}",
)


def pictures(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 56, 3), dtype=np.uint8)


def plain(folder: Path, names: tuple[str, ...], count: int) -> Any:
    """The oracle: the library's own joint pass, one picture at a time."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    processor, tokenizer = CLIPImageProcessor.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = tokenizer([f"a picture of the {name}" for name in names], padding=True, return_tensors="pt")
    with torch.no_grad():
        return [
            model(**tokens, **processor(images=Image.fromarray(picture), return_tensors="pt"))
            for picture in pictures(count)
        ]


def test_verdicts_are_the_librarys_softmax_over_the_names(clip_folder: Path) -> None:
    verdicts = load_judge(clip_folder, questions=QUESTIONS).score(pictures(4))
    for axis, names in (("concept", QUESTIONS.concepts), ("gender", QUESTIONS.others["gender"])):
        expected = [out.logits_per_image.softmax(dim=1)[0] for out in plain(clip_folder, names, 4)]
        np.testing.assert_allclose(getattr(verdicts, axis), torch.stack(expected), atol=1e-5)
    assert verdicts.style.shape == (4, 0)


def test_a_picture_shows_the_likeliest_name_and_no_other(clip_folder: Path) -> None:
    verdicts = load_judge(clip_folder, questions=QUESTIONS).score(pictures(12))
    for axis, names in QUESTIONS.names().items():
        shown = [[str(n) for n in names if verdicts.shows(Trait(n, axis))[row]] for row in range(12)]
        assert not names or shown == [[name] for name in verdicts.likeliest(axis)]


def test_features_are_the_projected_embeddings_before_they_are_scaled(clip_folder: Path) -> None:
    features = load_judge(clip_folder, questions=QUESTIONS).features(pictures(3))
    assert (features.dtype, features.shape) == (np.float32, (3, 12))
    for row, out in zip(features, plain(clip_folder, ("cat", "dog"), 3), strict=True):
        np.testing.assert_allclose(row / np.linalg.norm(row), out.image_embeds[0], atol=1e-5)
    assert not np.allclose(np.linalg.norm(features, axis=1), 1)


def test_no_pictures_have_no_verdicts(clip_folder: Path) -> None:
    judge = load_judge(clip_folder, questions=QUESTIONS)
    assert judge.score(pictures(0)).concept.shape == (0, 3)
    assert judge.features(pictures(0)).shape == (0, 12)
    assert (judge.name, judge.accuracy) == ("clip", {})


def test_clip_without_names_is_refused(clip_folder: Path) -> None:
    with pytest.raises(JudgeError, match="no names of its own"):
        load_judge(clip_folder)


def test_names_for_a_judge_that_has_its_own_are_refused() -> None:
    with pytest.raises(JudgeError, match="which has its own"):
        load_judge("pocket-judge", questions=QUESTIONS)


def test_all_faults_of_questions_are_named_at_once(clip_folder: Path) -> None:
    asked = Questions(
        concepts=("cat", "cat"),
        others={"skin": ("dark",), "age": ("old", "young")},  # type: ignore[dict-item]  # what a user may write
        template="a photo",
    )
    with pytest.raises(JudgeError) as caught:
        load_judge(clip_folder, questions=asked)
    said = str(caught.value)
    for part in ("0 places for a name", "'cat' is named twice", "1 names of skin", "'age' is no axis"):
        assert part in said
    assert len(caught.value.faults) == 4


def test_a_prompt_that_clip_would_cut_is_refused(clip_folder: Path) -> None:
    asked = Questions(concepts=("cat", " ".join(["pizza"] * 90)))
    with pytest.raises(JudgeError, match="tokens; this CLIP reads 77"):
        load_judge(clip_folder, questions=asked)
