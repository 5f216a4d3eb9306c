"""What arrives at the changed weights: the inputs that phrases give, and the usual spread of inputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from surgery.anatomy import Span, Tokenizer, frozen, locate, reading, reading_inputs, tokenize
from surgery.audit.words.background import TEMPLATES, scene_prompts
from surgery.audit.words.towers import Tower, Towers
from surgery.errors import ConceptError
from surgery.numerics import MomentSum
from surgery.progress import track

FEATURES: Final = "features"
"""The key of what cross-attention reads: the encoder's output, of SDXL's two what enters the last block."""

# Enough tokens to fill two cores; few enough for all inputs of one pass to fit beside the model.
_TOKENS_PER_BATCH: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs of one weight.

    Attributes:
        phrases: Each phrase's, at its last token, as the mean over the templates.
        usual: Second moment over all tokens of ordinary prompts, begin tokens left out.
    """

    phrases: Float[Tensor, "phrases d_in"]
    usual: Float[Tensor, "d_in d_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Phrases that the tokenizer could find in every template, and why the others could not be."""

    phrases: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]
    left_out: Mapping[str, str]

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """The ids of each phrase alone."""
        return [first.ids[first.start : first.end] for first, *_ in self.spans]


def locate_all(tokenizer: Tokenizer, phrases: Sequence[str], limit: int) -> Located:
    """Every phrase in every template; ``limit`` is the number of the encoder's positions."""
    found: dict[str, tuple[Span, ...]] = {}
    left_out: dict[str, str] = {}
    for phrase in phrases:
        try:
            found[phrase] = tuple(
                locate(tokenizer, template, phrase, limit=limit, strict=False) for template in TEMPLATES
            )
        except ConceptError as error:
            left_out[phrase] = str(error)
    return Located(phrases=tuple(found), spans=tuple(found.values()), left_out=left_out)


@torch.no_grad()
def collect(
    towers: Towers, located: Located, captions: Sequence[str], modules: Mapping[str, nn.Module]
) -> dict[str, Inputs]:
    """The inputs of some modules of the text encoders, and `FEATURES`; each prompt is run once.

    Args:
        towers: The encoders, in the type they compute in.
        located: The phrases.
        captions: Prompts that show what is usual; without any, scenes of common nouns and the phrases' own.
        modules: By the key their inputs come back under.
    """
    spans = [span for per_phrase in located.spans for span in per_phrase]
    prompts = [span.ids for span in spans]
    usual = captions or tuple(scene_prompts())
    prompts += [tokenize(towers.tokenizer, prompt).cut(towers.positions) for prompt in usual]
    first = len(spans) if captions else 0  # of the prompts that are usual
    sums: dict[str, Tensor] = {}
    moments: dict[str, MomentSum] = {}
    with frozen(*(tower.encoder for tower in towers.every)):
        for chosen in track(list(_batches(prompts)), "words", unit="batch"):
            ids, counted = _padded([prompts[index] for index in chosen], towers.tokenizer.pad_token_id)
            named = [place for place, index in enumerate(chosen) if index < len(spans)]
            last = torch.tensor([spans[chosen[place]].last for place in named], dtype=torch.int64)
            owners = torch.tensor([chosen[place] // len(TEMPLATES) for place in named], dtype=torch.int64)
            counted &= torch.tensor([index >= first for index in chosen])[:, None]
            for key, values in _pass(towers, modules, ids).items():
                values = values.float().cpu()
                width = values.shape[2]
                moments.setdefault(key, MomentSum(width)).add(values[counted])
                total = sums.setdefault(key, torch.zeros(len(located.phrases), width))
                total.index_add_(0, owners, values[named, last])
    return {
        key: Inputs(phrases=total / len(TEMPLATES), usual=moments[key].mean()) for key, total in sums.items()
    }


def _pass(
    towers: Towers, modules: Mapping[str, nn.Module], ids: Int[Tensor, "prompts tokens"]
) -> dict[str, Tensor]:
    with ExitStack() as stack:
        inputs = stack.enter_context(reading_inputs(modules))
        features = [stack.enter_context(_features(tower, len(towers.every) > 1)) for tower in towers.every]
        for tower in towers.every:
            tower.encoder(ids.to(tower.stack.device))
        return {**inputs, FEATURES: torch.cat([seen[FEATURES] for seen in features], 2)}


def _features(tower: Tower, early: bool) -> AbstractContextManager[dict[str, Tensor]]:
    """What the U-Net reads of an encoder: its normed output, or (``early``) what enters its last block."""
    if early:
        return reading_inputs({FEATURES: tower.stack.blocks[-1].layer_norm1})
    return reading({FEATURES: tower.stack.final_norm})


def _batches(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Numbers of prompts of about one length."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        if batch and (len(batch) + 1) * len(prompts[index]) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _padded(
    prompts: Sequence[tuple[int, ...]], pad: int
) -> tuple[Int[Tensor, "prompts tokens"], Bool[Tensor, "prompts tokens"]]:
    """Ids, and which tokens count: all but begin and padding. No token reads the padding to its right."""
    width = max(len(one) for one in prompts)
    ids = torch.tensor([[*one, *[pad] * (width - len(one))] for one in prompts])
    lengths, places = torch.tensor([len(one) for one in prompts]), torch.arange(width)
    return ids, (places > 0) & (places < lengths[:, None])
