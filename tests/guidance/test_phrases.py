"""Phrases of prompts."""

from types import SimpleNamespace

import pytest

from surgery.guidance.phrases import phrases_by, plain_phrases


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a red apple and a green bench", ("a red apple", "a green bench")),
        ("a photo of a cat next to a dog", ("a cat", "a dog")),
        ("An oil painting of a ship on the sea, stormy sky", ("a ship", "the sea", "stormy sky")),
        ("a black and white portrait of an old man wearing glasses", ("an old man", "glasses")),
        ("cat", ("cat",)),
        ("a cat, a cat", ("a cat",)),
        ("two dogs playing with a yellow ball in front of a house", ("two dogs", "a yellow ball", "a house")),
        ("", ()),
        ("it is a bird", ("a bird",)),
        ("the photographer's studio", ("the photographer's studio",)),
        ("a box of oranges", ("a box", "oranges")),
        ("a red box with a photo of a cat", ("a red box", "a photo", "a cat")),
    ],
)
def test_plain_rules_find_what_short_prompts_are_about(prompt: str, phrases: tuple[str, ...]) -> None:
    assert plain_phrases(prompt) == phrases


def test_a_library_s_noun_phrases_are_taken_without_pronouns() -> None:
    def pipeline(text: str) -> SimpleNamespace:
        assert text == "a cat that it likes"
        chunks = [("a cat", "NOUN"), ("it", "PRON"), ("a cat", "NOUN")]
        return SimpleNamespace(
            noun_chunks=[SimpleNamespace(text=one, root=SimpleNamespace(pos_=kind)) for one, kind in chunks]
        )

    assert phrases_by(pipeline)("a photo of a cat that it likes") == ("a cat",)
