"""The anatomy of the models: blocks found by structure, phrases found among tokens, taps that let go."""

from surgery.anatomy.atlas import Place, block_order, place_of
from surgery.anatomy.digest import settings_text, tensor_bytes, weights_digest
from surgery.anatomy.leaves import standing_in, weights_of
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
    "Place",
    "Span",
    "TextStack",
    "TokenizedPrompt",
    "Tokenizer",
    "after_attention",
    "after_block",
    "block_order",
    "fill",
    "frozen",
    "locate",
    "locate_nothing",
    "mlp_keys",
    "past_of",
    "place_of",
    "reading",
    "reading_inputs",
    "replacing",
    "settings_text",
    "standing_in",
    "tensor_bytes",
    "text_blocks",
    "text_stack",
    "through_blocks",
    "tokenize",
    "weights_digest",
    "weights_of",
]
