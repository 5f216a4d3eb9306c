"""The encoder behind the insertion point against the whole encoder with a hook."""

from typing import Any

import pytest
import torch

from surgery.anatomy import replacing, text_stack
from surgery.methods.emcid.tail import Prompts, Tail, encode, pooled, tail_of

SUBJECT, EOS = torch.tensor([5, 1, 3]), torch.tensor([6, 2, 10])


@pytest.fixture(params=["read", "left out"])
def prompts(tokenizer: Any, request: pytest.FixtureRequest) -> Prompts:
    texts = ["a photo of a cat", "dog", "the female doctor and the male dog in the picture"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    real = tokens.attention_mask.bool() if request.param == "left out" else None
    return Prompts(ids=tokens.input_ids, subject=SUBJECT, eos=EOS, real=real)


@pytest.fixture
def offsets() -> torch.Tensor:
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


def hooked(encoder: Any, prompts: Prompts, layer: int, offsets: torch.Tensor) -> torch.Tensor:
    """The library's own pass, with each row's offset added at its subject behind a block."""

    def insert(stream: torch.Tensor) -> torch.Tensor:
        stream = stream.clone()
        stream[torch.arange(3), prompts.subject] += offsets
        return stream

    mask = None if prompts.real is None else prompts.real.long()
    with torch.no_grad(), replacing(encoder.encoder.layers[layer], insert):
        features: torch.Tensor = encoder(prompts.ids, attention_mask=mask).last_hidden_state
    return features


def tail_at(encoder: Any, prompts: Prompts, layer: int) -> Tail:
    return tail_of(text_stack(encoder), prompts, layer)


@pytest.mark.parametrize("layer", [0, 7, 10])
def test_features_are_those_of_the_whole_encoder(
    encoder: Any, prompts: Prompts, offsets: torch.Tensor, layer: int
) -> None:
    found = tail_at(encoder, prompts, layer).features(offsets)
    torch.testing.assert_close(found, hooked(encoder, prompts, layer, offsets))


@pytest.mark.parametrize("layer", [0, 7, 10])
def test_pooled_features_are_those_of_the_whole_encoder(
    encoder: Any, prompts: Prompts, offsets: torch.Tensor, layer: int
) -> None:
    expected = hooked(encoder, prompts, layer, offsets)[torch.arange(3), EOS]
    torch.testing.assert_close(tail_at(encoder, prompts, layer).pooled(offsets), expected)


def test_gradients_are_those_of_the_whole_encoder(
    encoder: Any, prompts: Prompts, offsets: torch.Tensor
) -> None:
    ours, theirs = offsets.clone().requires_grad_(), offsets.clone().requires_grad_()
    tail_at(encoder, prompts, 8).features(ours).square().sum().backward()

    def insert(stream: torch.Tensor) -> torch.Tensor:
        return stream.index_put((torch.arange(3), prompts.subject), theirs, accumulate=True)

    mask = None if prompts.real is None else prompts.real.long()
    with replacing(encoder.encoder.layers[8], insert):
        encoder(prompts.ids, attention_mask=mask).last_hidden_state.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_a_selection_is_the_tail_of_those_prompts(
    encoder: Any, prompts: Prompts, offsets: torch.Tensor
) -> None:
    tail, rows = tail_at(encoder, prompts, 9), torch.tensor([2, 0])
    torch.testing.assert_close(tail.select(rows).features(offsets[rows]), tail.features(offsets)[rows])
    torch.testing.assert_close(tail.select(rows).pooled(offsets[rows]), tail.pooled(offsets)[rows])


def test_without_an_offset_nothing_changes(encoder: Any, prompts: Prompts) -> None:
    features = encode(text_stack(encoder), prompts)
    tail = tail_at(encoder, prompts, 10)
    torch.testing.assert_close(tail.features(torch.zeros(3, 32)), features)
    torch.testing.assert_close(tail.pooled(torch.zeros(3, 32)), pooled(features, EOS))


def test_tokens_before_the_first_subject_are_not_computed_again(encoder: Any, prompts: Prompts) -> None:
    tail = tail_at(encoder, prompts, 10)
    assert tail.first == 1
    assert tail.stream.shape[1] == prompts.ids.shape[1] - 1
