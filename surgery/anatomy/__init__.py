"""The anatomy of the models: blocks found by structure, phrases found among tokens, taps that let go."""

from surgery.anatomy.digest import settings_text, tensor_bytes, weights_digest
from surgery.anatomy.spans import PLACEHOLDER, Span, fill, locate, locate_nothing
from surgery.anatomy.taps import frozen, reading, reading_inputs, replacing
from surgery.anatomy.text import (
    Past,
    TextStack,
    after_attention,
    after_block,
    mlp_keys,
    past_of,
    text_blocks,
    text_stack,
    through_blocks,
)
from surgery.anatomy.tokens import TokenizedPrompt, Tokenizer, tokenize

__all__ = [
    "PLACEHOLDER",
    "Past",
    "Span",
    "TextStack",
    "TokenizedPrompt",
    "Tokenizer",
    "after_attention",
    "after_block",
    "fill",
    "frozen",
    "locate",
    "locate_nothing",
    "mlp_keys",
    "past_of",
    "reading",
    "reading_inputs",
    "replacing",
    "settings_text",
    "tensor_bytes",
    "text_blocks",
    "text_stack",
    "through_blocks",
    "tokenize",
    "weights_digest",
]
