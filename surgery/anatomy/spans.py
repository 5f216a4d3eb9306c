"""Where a phrase lies among the tokens of its prompt, told by the placeholder and never by a text search."""

import unicodedata
from dataclasses import dataclass

from surgery.anatomy.tokens import TokenizedPrompt, Tokenizer, tokenize
from surgery.errors import ConceptError

PLACEHOLDER = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The tokens ``[start, end)`` of a phrase inside its prompt.

    ``ids`` are the ids of the whole prompt, BOS to EOS. ``merged`` says that a token at an edge of the phrase
    also holds characters of the template (``a stack of {}s``); ``lost`` counts tokens of the template that
    did not fit into the encoder.
    """

    start: int
    end: int
    ids: tuple[int, ...]
    merged: bool = False
    lost: int = 0

    @property
    def last(self) -> int:
        """The position that an edit steers: the phrase's last token (of no phrase, the token before it)."""
        return self.end - 1

    @property
    def eos(self) -> int:
        """The position whose feature stands for the whole prompt."""
        return len(self.ids) - 1


def fill(template: str, phrase: str) -> str:
    """The prompt that a template makes of a phrase.

    Raises:
        ConceptError: when the template does not have exactly one ``{}``.
    """
    count = template.count(PLACEHOLDER)
    if count != 1:
        raise ConceptError(
            f"template {template!r} has {count} placeholders; expected exactly one {PLACEHOLDER}. "
            "Write it where the concept's name stands."
        )
    return template.replace(PLACEHOLDER, phrase)


def locate_nothing(tokenizer: Tokenizer, template: str, *, limit: int = 77) -> Span:
    """The empty span where ``{}`` stands in a template that is filled with nothing.

    Raises:
        ConceptError: when the placeholder is missing or repeated, or lies beyond ``limit``.
    """
    prompt = fill(template, "")
    found = tokenize(tokenizer, prompt)
    _refuse_special(tokenizer, found, prompt)
    place = template.index(PLACEHOLDER)
    start = 1 + sum(left < right <= place for left, right in found.offsets)
    if start > limit - 1:
        raise ConceptError(
            f"{_short(prompt)} has {len(found.ids)} tokens and the encoder reads {limit}; its placeholder "
            "lies outside. Shorten the text before it."
        )
    return Span(start=start, end=start, ids=found.cut(limit), lost=found.lost(limit))


def locate(tokenizer: Tokenizer, template: str, phrase: str, *, limit: int = 77, strict: bool = True) -> Span:
    """The span of ``phrase`` at the place of ``{}`` in ``template``.

    The tokenizer's offsets refer to the text as it was written, also where it lower-cases, collapses
    white space or composes accents; so the placeholder's own characters decide, wherever else the phrase may
    occur. A character of several tokens (an emoji, a rare letter) belongs to the phrase with all of them.

    Args:
        tokenizer: A CLIP tokenizer with offsets.
        template: A text with exactly one ``{}``.
        phrase: What stands there; white space around it does not count.
        limit: Positions of the text encoder.
        strict: Refuse a phrase that shares a token with the template; otherwise take the tokens that hold it.

    Raises:
        ConceptError: when the placeholder is missing or repeated, the phrase is empty or has no token, it is
            merged with its neighbours (if ``strict``), holds a special token, or lies beyond ``limit``.
    """
    prompt = fill(template, phrase)
    bare = phrase.strip()
    if not bare:
        raise ConceptError(
            f"the phrase for template {template!r} is {phrase!r}; expected a name to look for. "
            "Only a destination may be empty."
        )
    start = template.index(PLACEHOLDER) + phrase.index(bare)
    place = (start, start + len(bare))
    found = tokenize(tokenizer, prompt)
    tokens = _tokens_at(found, place)
    _refuse_special(tokenizer, found, prompt)
    if not tokens:
        raise ConceptError(
            f"the phrase {bare!r} gives no token in {prompt!r}; expected at least one. "
            "It consists of characters that the tokenizer drops."
        )
    if tokens[-1] > limit - 2:  # the last position is for EOS
        raise ConceptError(
            f"{_short(prompt)} has {len(found.ids)} tokens and the encoder reads {limit}; the phrase "
            f"{_short(bare)} ends at token {tokens[-1]}, outside. Shorten the text before or in the phrase."
        )
    merged = _merged(found, tokens, place, prompt)
    if merged and strict:
        held = prompt[found.offsets[tokens[0]][0] : found.offsets[tokens[-1]][1]]
        raise ConceptError(
            f"in {prompt!r} the phrase {bare!r} shares a token with its neighbours ({held!r}); expected it "
            "to end where a token ends. Put a space around {} in the template, or allow merged spans."
        )
    return Span(
        start=tokens[0],
        end=tokens[-1] + 1,
        ids=found.cut(limit),
        merged=merged,
        lost=found.lost(limit),
    )


def _tokens_at(found: TokenizedPrompt, place: tuple[int, int]) -> list[int]:
    # BOS and EOS carry the empty range (0, 0) and so never overlap
    start, end = place
    return [
        index
        for index, (left, right) in enumerate(found.offsets)
        if left < right and left < end and right > start
    ]


def _refuse_special(tokenizer: Tokenizer, found: TokenizedPrompt, prompt: str) -> None:
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if any(token in special for token in found.ids[1:-1]):
        raise ConceptError(
            f"{_short(prompt)} gives the start or end token in its middle; expected plain text that the "
            "vocabulary knows. The features of such a prompt would be read at the wrong place."
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _merged(found: TokenizedPrompt, tokens: list[int], place: tuple[int, int], prompt: str) -> bool:
    start, end = place
    if found.offsets[tokens[0]][0] < start or found.offsets[tokens[-1]][1] > end:
        return True
    # An accent of the template may melt into the phrase's last letter without any token crossing the edge.
    return any(
        unicodedata.normalize("NFC", prompt[:edge]) + unicodedata.normalize("NFC", prompt[edge:])
        != unicodedata.normalize("NFC", prompt)
        for edge in place
    )
