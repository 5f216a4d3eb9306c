"""The encoder run piece by piece against its own ``forward``."""

from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy import (
    after_block,
    past_of,
    reading,
    reading_inputs,
    text_blocks,
    text_stack,
    through_blocks,
)
from surgery.anatomy.text import after_attention, mlp_keys
from surgery.errors import MethodError


@pytest.fixture
def prompts(tokenizer: Any) -> Any:
    texts = ["a photo of a cat", "painting", "the female doctor and the male dog in the picture"]
    return tokenizer(texts, padding=True, return_tensors="pt")


def test_sizes_are_read_from_the_modules(encoder: Any) -> None:
    stack = text_stack(encoder)
    assert (len(stack.blocks), stack.width, stack.mlp_width, stack.positions) == (12, 32, 128, 77)


def test_blocks_are_found_in_order(encoder: Any) -> None:
    assert text_blocks(encoder) == list(encoder.encoder.layers)


def test_names_are_canonical(encoder: Any) -> None:
    assert text_stack(encoder).name(3) == "text_encoder/text_model.encoder.layers.3.mlp.fc2.weight"


def test_all_blocks_are_the_forward_pass_to_the_bit(encoder: Any, prompts: Any) -> None:
    stack = text_stack(encoder)
    features = stack.final_norm(through_blocks(stack.blocks, stack.embed(prompts.input_ids)))
    assert torch.equal(features, encoder(prompts.input_ids).last_hidden_state)


def test_a_mask_hides_padding_as_the_forward_pass_does(encoder: Any, prompts: Any) -> None:
    stack = text_stack(encoder)
    masked = through_blocks(stack.blocks, stack.embed(prompts.input_ids), prompts.attention_mask.bool())
    expected = encoder(**prompts).last_hidden_state
    torch.testing.assert_close(stack.final_norm(masked), expected)
    assert not torch.allclose(expected, encoder(prompts.input_ids).last_hidden_state)


def test_mlp_keys_are_the_inputs_of_fc2(encoder: Any, prompts: Any) -> None:
    stack = text_stack(encoder)
    block = stack.blocks[0]
    with reading_inputs({"fc2": block.mlp.fc2}) as seen:
        encoder(prompts.input_ids)
    middle = after_attention(block, stack.embed(prompts.input_ids))
    assert torch.equal(mlp_keys(block, middle), seen["fc2"])


@pytest.mark.parametrize("behind", [1, 4])
def test_a_pass_behind_some_tokens_gives_what_the_whole_pass_gives(
    encoder: Any, prompts: Any, behind: int
) -> None:
    stack = text_stack(encoder)
    block, stream = stack.blocks[2], stack.embed(prompts.input_ids)
    mask = prompts.attention_mask.bool()
    whole = after_block(block, stream, mask=mask)
    past = past_of(block, stream[:, :behind])
    torch.testing.assert_close(
        after_block(block, stream[:, behind:], past=past, mask=mask), whole[:, behind:]
    )


def test_asking_for_one_token_gives_that_token(encoder: Any, prompts: Any) -> None:
    stack = text_stack(encoder)
    block, stream = stack.blocks[2], stack.embed(prompts.input_ids)
    asked = torch.tensor([3, 1, 7])
    past = past_of(block, stream[:, :1])
    one = after_block(block, stream[:, 1:], past=past, queries=asked - 1)
    torch.testing.assert_close(one[:, 0], after_block(block, stream)[torch.arange(3), asked])


def test_a_block_s_stream_is_its_output(encoder: Any, prompts: Any) -> None:
    stack = text_stack(encoder)
    with reading({"five": stack.blocks[5]}) as seen:
        encoder(prompts.input_ids)
    assert torch.equal(through_blocks(stack.blocks[:6], stack.embed(prompts.input_ids)), seen["five"])


def test_another_architecture_is_refused_with_the_supported_ones() -> None:
    with pytest.raises(MethodError, match="has 0 lists of blocks.*CLIPTextModel"):
        text_stack(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2))


def test_two_towers_are_refused(encoder: Any) -> None:
    with pytest.raises(MethodError, match="has 2 lists"):
        text_stack(nn.ModuleList([encoder, encoder.__class__(encoder.config)]))
