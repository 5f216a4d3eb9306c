"""Which words a change acts on: inputs of the changed weights, and what usually arrives there."""

from surgery.audit.words.lists import own_captions, own_words, read_captions, read_words
from surgery.audit.words.ranking import rank_words

__all__ = ["own_captions", "own_words", "rank_words", "read_captions", "read_words"]
