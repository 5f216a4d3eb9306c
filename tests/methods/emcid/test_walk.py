"""A walk through the encoder against passes of the whole encoder."""

import copy
from typing import Any

import pytest
import torch

from surgery.anatomy import reading, reading_inputs, text_stack
from surgery.methods.emcid import walk as rooms
from surgery.methods.emcid.walk import Stretch, Walk

PROMPTS = ("a photo of a cat", "dog", "the female doctor and the male dog", "painting of a fish")


@pytest.fixture
def stretches(tokenizer: Any) -> list[Stretch]:
    ids = [tuple(tokenizer(prompt).input_ids) for prompt in PROMPTS]
    return [Stretch(ids=one, start=1, end=len(one)) for one in ids]


def whole(encoder: Any, stretches: list[Stretch], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and streams of a layer at the tokens of interest, one prompt at a time."""
    keys, streams = [], []
    block = encoder.encoder.layers[layer]
    for one in stretches:
        with (
            torch.no_grad(),
            reading_inputs({"keys": block.mlp.fc2}) as inputs,
            reading({"out": block}) as out,
        ):
            encoder(torch.tensor([one.ids]))
        keys.append(inputs["keys"][0, one.start : one.end])
        streams.append(out["out"][0, one.start : one.end])
    return torch.cat(keys), torch.cat(streams)


@pytest.mark.parametrize("tokens_at_once", [1, 12, 4096])
@pytest.mark.parametrize("worth_sharing", [1, 2, 32])
def test_keys_and_streams_are_those_of_the_whole_encoder(
    encoder: Any,
    stretches: list[Stretch],
    tokens_at_once: int,
    worth_sharing: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rooms, "_TOKENS_AT_ONCE", tokens_at_once)
    monkeypatch.setattr(rooms, "_WORTH_SHARING", worth_sharing)
    walk = Walk(text_stack(encoder), stretches)
    for layer in range(4):
        keys, stream = whole(encoder, stretches, layer)
        torch.testing.assert_close(walk.keys(), keys)
        torch.testing.assert_close(walk.stream_behind(layer, {}), stream)
        walk.step({})
        torch.testing.assert_close(walk.stream(), stream)


def test_changed_weights_are_those_of_a_changed_encoder(encoder: Any, stretches: list[Stretch]) -> None:
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.encoder.layers[1].mlp.fc2.weight += 0.1
    weights = {1: changed.encoder.layers[1].mlp.fc2.weight.detach()}
    walk = Walk(text_stack(encoder), stretches)
    walk.step(weights)
    torch.testing.assert_close(walk.stream_behind(5, weights), whole(changed, stretches, 5)[1])
    walk.step(weights)
    torch.testing.assert_close(walk.keys(), whole(changed, stretches, 2)[0])


def test_a_prompt_cut_behind_the_token_of_interest_gives_the_same(
    encoder: Any, stretches: list[Stretch]
) -> None:
    cut = [Stretch(ids=one.ids[:2], start=1, end=2) for one in stretches]
    long = [Stretch(ids=one.ids, start=1, end=2) for one in stretches]
    short, full = (Walk(text_stack(encoder), given).stream_behind(10, {}) for given in (cut, long))
    torch.testing.assert_close(short, full)


def test_a_template_is_worked_out_once_for_all_its_prompts(
    encoder: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "_WORTH_SHARING", 3)
    names = ("cat", "fish", "female doctor", "style")
    ids = [tuple(tokenizer(f"a photo of a {name}").input_ids[:-1]) for name in names]
    stretches = [Stretch(ids=one, start=len(one) - 1, end=len(one)) for one in ids]
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.encoder.layers[2].mlp.fc2.weight += 0.1
    weights = {2: changed.encoder.layers[2].mlp.fc2.weight.detach()}
    walk, tokens = Walk(text_stack(encoder), stretches), []
    fc1 = encoder.encoder.layers[0].mlp.fc1
    hook = fc1.register_forward_hook(lambda _, given, out: tokens.append(out.shape[:-1].numel()))
    walk.step(weights)
    hook.remove()
    # the begin token and the template's four words once, then four names in a batch as wide as the longest
    assert sum(tokens) == 5 + 4 * 2
    walk.step(weights)
    torch.testing.assert_close(walk.keys(), whole(changed, stretches, 2)[0])
    torch.testing.assert_close(walk.stream_behind(10, weights), whole(changed, stretches, 10)[1])
    torch.testing.assert_close(walk.stream_behind(2, weights), whole(changed, stretches, 2)[1])
