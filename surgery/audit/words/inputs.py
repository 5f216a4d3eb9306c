"""What arrives at the changed weights: the inputs that phrases give, and the usual spread of inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from surgery.anatomy import Span, Tokenizer, frozen, locate, reading, reading_inputs, text_stack, tokenize
from surgery.audit.words.background import TEMPLATES, scene_prompts
from surgery.errors import ConceptError
from surgery.numerics import MomentSum
from surgery.progress import track

FEATURES: Final = "features"
"""The key of the text encoder's own output, which cross-attention reads."""

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
    encoder: nn.Module,
    tokenizer: Tokenizer,
    located: Located,
    captions: Sequence[str],
    modules: Mapping[str, nn.Module],
) -> dict[str, Inputs]:
    """The inputs of some modules of a text encoder, and of `FEATURES` its output; each prompt is run once.

    Args:
        encoder: In the type it computes in.
        tokenizer: Its tokenizer.
        located: The phrases.
        captions: Prompts that show what is usual; without any, scenes of common nouns and the phrases' own.
        modules: By the key their inputs come back under.
    """
    stack = text_stack(encoder)
    spans = [span for per_phrase in located.spans for span in per_phrase]
    prompts = [span.ids for span in spans]
    usual = captions or tuple(scene_prompts())
    prompts += [tokenize(tokenizer, prompt).cut(stack.positions) for prompt in usual]
    first = len(spans) if captions else 0  # of the prompts that are usual
    sums: dict[str, Tensor] = {}
    moments: dict[str, MomentSum] = {}
    with frozen(encoder):
        for chosen in track(list(_batches(prompts)), "words", unit="batch"):
            ids, counted = _padded([prompts[index] for index in chosen], tokenizer.pad_token_id)
            named = [place for place, index in enumerate(chosen) if index < len(spans)]
            last = torch.tensor([spans[chosen[place]].last for place in named], dtype=torch.int64)
            owners = torch.tensor([chosen[place] // len(TEMPLATES) for place in named], dtype=torch.int64)
            counted &= torch.tensor([index >= first for index in chosen])[:, None]
            for key, values in _pass(encoder, modules, ids.to(stack.device)).items():
                values = values.float().cpu()
                width = values.shape[2]
                moments.setdefault(key, MomentSum(width)).add(values[counted])
                total = sums.setdefault(key, torch.zeros(len(located.phrases), width))
                total.index_add_(0, owners, values[named, last])
    return {
        key: Inputs(phrases=total / len(TEMPLATES), usual=moments[key].mean()) for key, total in sums.items()
    }


def _pass(
    encoder: nn.Module, modules: Mapping[str, nn.Module], ids: Int[Tensor, "prompts tokens"]
) -> dict[str, Tensor]:
    final: Any = text_stack(encoder).final_norm
    with reading_inputs(modules) as inputs, reading({FEATURES: final}) as outputs:
        encoder(ids)
        return {**inputs, **outputs}


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
