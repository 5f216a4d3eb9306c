"""The things that a prompt is about: noun phrases, by a library's grammar or by plain rules."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

_FRAME: Final = re.compile(
    r"^(?:an?|the|one)?\s*(?:(?!(?:with|of|on|in)\b)[a-z-]+\s+){0,3}?"
    r"(?:photo(?:graph)?|picture|image|painting|drawing|sketch|illustration|rendering|render|portrait|shot"
    r"|close-?up|view)s?\s+(?:of|showing|with)\s+",
    re.IGNORECASE,
)
_APART: Final = re.compile(
    r"[,;:.]|\b(?:next to|in front of|on top of|to the (?:left|right) of|and|with|without|on|in|at|under|over"
    r"|above|below|behind|beside|near|between|beneath|inside|outside|against|around|wearing|holding|riding"
    r"|carrying|eating|drinking|sitting|standing|lying|flying|playing|walking|running|is|are|while|that|which"
    r"|who|from|into|onto|by|for|of)\b",
    re.IGNORECASE,
)
_ALONE: Final = frozenset({"", "a", "an", "the", "it", "he", "she", "they", "this", "that", "there", "some"})

Finder = Callable[[str], tuple[str, ...]]
"""The phrases of a prompt, in its order, each once."""


def plain_phrases(prompt: str) -> tuple[str, ...]:
    """Phrases by plain rules, for short English prompts: parts between commas, prepositions and verbs.

    An opening such as "a photo of" is left out. What the rules cannot tell from a noun stays in.
    """
    body = _FRAME.sub("", prompt.strip())
    return _once(part.strip(" \t\"'()") for part in _APART.split(body))


def phrases_by(pipeline: Any) -> Finder:
    """A finder that reads noun phrases off a spaCy pipeline, such as ``spacy.load("en_core_web_sm")``.

    Pronouns are left out.
    """

    def find(prompt: str) -> tuple[str, ...]:
        body = _FRAME.sub("", prompt.strip())
        return _once(chunk.text for chunk in pipeline(body).noun_chunks if chunk.root.pos_ != "PRON")

    return find


def _once(parts: Iterable[str]) -> tuple[str, ...]:
    wanted = (" ".join(part.split()) for part in parts)
    return tuple(dict.fromkeys(part for part in wanted if part.lower() not in _ALONE))
