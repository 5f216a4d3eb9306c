"""Prompts as token ids: the few things that this project asks of a CLIP tokenizer."""

from dataclasses import dataclass
from typing import Any, Protocol

from surgery.errors import ConceptError


class Tokenizer(Protocol):
    """A CLIP tokenizer with offsets: ``CLIPTokenizer`` of transformers 5, ``CLIPTokenizerFast`` before."""

    @property
    def is_fast(self) -> bool:
        """Whether it can say which characters a token came from."""

    @property
    def bos_token_id(self) -> int:
        """Id of the token that opens every prompt."""

    @property
    def eos_token_id(self) -> int:
        """Id of the token that closes every prompt."""

    @property
    def pad_token_id(self) -> int:
        """Id that fills a prompt up (the EOS id in SD 1.x, another one in SD 2.x)."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Ids, and on request offsets, of one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """All ids of a prompt, BOS to EOS, with the characters ``[start, end)`` that each id came from."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def cut(self, limit: int) -> tuple[int, ...]:
        """The ids that fit into ``limit`` positions; EOS moves to the last one, as in the pipelines."""
        return self.ids if len(self.ids) <= limit else (*self.ids[: limit - 1], self.ids[-1])

    def lost(self, limit: int) -> int:
        """How many tokens do not fit into ``limit`` positions."""
        return max(0, len(self.ids) - limit)


def tokenize(tokenizer: Tokenizer, prompt: str) -> TokenizedPrompt:
    """The ids of a prompt and their places in the text, whatever its length.

    Raises:
        ConceptError: when the tokenizer cannot give offsets.
    """
    if not tokenizer.is_fast:
        raise ConceptError(
            f"{type(tokenizer).__name__} gives no character offsets; expected a fast tokenizer. "
            "With transformers 4 load CLIPTokenizerFast from the same folder."
        )
    found = tokenizer(prompt, return_offsets_mapping=True, truncation=False, padding=False, verbose=False)
    return TokenizedPrompt(
        ids=tuple(int(token) for token in found["input_ids"]),
        offsets=tuple((int(start), int(end)) for start, end in found["offset_mapping"]),
    )
