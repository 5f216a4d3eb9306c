"""Stage II and its statistics as released: a whole pass for every reading, LU, nothing kept.

All prompts go through the encoder in one call, padded to the longest, with the attention mask; twice for each
layer, for its keys and for what is there. A second moment takes a pass over the captions for each layer.

Source: 2.1 to 2.5 of the study of arXiv 2403.13807; ``tests/parity/plain_emcid`` says the same concept by
concept, and both are compared in a test.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy import fill, reading, reading_inputs, text_blocks
from surgery.methods.emcid import Target, UpdateSettings
from surgery.progress import track


class PlainPrompts:
    """The prompts of all concepts as one batch, padded to the longest, and the places of their subjects."""

    def __init__(self, tokenizer: Any, targets: Sequence[Target]) -> None:
        edits = [target.concept.edit for target in targets]
        self.count, self.each = len(edits), len(edits[0].templates)
        texts = [fill(template, edit.source) for edit in edits for template in edit.templates]
        self.tokens = tokenizer(texts, return_tensors="pt", padding=True)
        self.places = torch.tensor([span.last for target in targets for span in target.concept.spans])

    @torch.no_grad()
    def means(self, encoder: Any, module: Any, tap: Any) -> Tensor:
        """What a module reads or gives at the subjects, the mean over each concept's prompts, in float64."""
        with tap({"site": module}) as seen:
            encoder(self.tokens.input_ids, attention_mask=self.tokens.attention_mask)
        rows = torch.arange(len(self.places))
        found: Tensor = seen["site"][rows, self.places].view(self.count, self.each, -1).mean(1)
        return found.double()


def plain_stage_two(
    encoder: Any,
    tokenizer: Any,
    targets: Sequence[Target],
    moments: Mapping[int, Tensor],
    settings: UpdateSettings,
) -> dict[int, Tensor]:
    """ΔW of each layer in float32, for a mean key for each concept and v* = first source vector + offset."""
    encoder, layers = copy.deepcopy(encoder), settings.layers
    blocks, prompts = text_blocks(encoder), PlainPrompts(tokenizer, targets)
    wanted = torch.stack([target.source + target.offset for target in targets]).double()
    changes = {}
    for index, layer in enumerate(track(layers, "plain Stage II", unit="layer")):
        block: Any = blocks[layer]
        keys = prompts.means(encoder, block.mlp.fc2, reading_inputs)
        where = block.mlp.fc2 if settings.residual == "mlp" else blocks[layers[-1]]
        residual = (wanted - prompts.means(encoder, where, reading)) / (len(layers) - index)
        system = (1 - settings.alpha) * settings.ridge * moments[layer] + settings.alpha * keys.T @ keys
        solved = torch.linalg.solve(system, settings.alpha * keys.T)
        changes[layer] = (residual.T @ solved.T).float()
        with torch.no_grad():
            block.mlp.fc2.weight += changes[layer]
    return changes


@torch.no_grad()
def plain_moments(
    encoder: Any, tokenizer: Any, captions: Sequence[str], layers: Sequence[int], tokens_at_once: int = 3072
) -> dict[int, Tensor]:
    """E[k kᵀ] of each layer over the captions' tokens without padding, one pass over all for each layer."""
    blocks: Any = text_blocks(encoder)
    return {
        layer: _moment(encoder, tokenizer, captions, blocks[layer].mlp.fc2, tokens_at_once)
        for layer in track(layers, "plain statistics", unit="layer")
    }


def _moment(encoder: Any, tokenizer: Any, captions: Sequence[str], fc2: Any, tokens_at_once: int) -> Tensor:
    lengths = [len(tokenizer(caption, truncation=True).input_ids) for caption in captions]
    order = sorted(range(len(captions)), key=lambda index: lengths[index])
    total, count, start = torch.zeros(fc2.in_features, fc2.in_features), 0, 0
    while start < len(order):
        size = max(1, tokens_at_once // lengths[order[min(start + 8, len(order) - 1)]])
        texts = [captions[index] for index in order[start : start + size]]
        tokens = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        with reading_inputs({"keys": fc2}) as seen:
            encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        keys = seen["keys"][tokens.attention_mask.bool()]
        total += keys.T @ keys
        count, start = count + len(keys), start + size
    return total.double() / count
