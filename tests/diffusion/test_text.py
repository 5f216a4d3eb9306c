import logging
from typing import Any

import pytest
import torch

from surgery.diffusion import encode_prompts
from surgery.errors import SurgeryError, brief

PROMPTS = ["a photo of a cat", "a dog", "a photo of a cat", ""]
LONG = "a cat " * 60


def encoded(pipeline: Any, prompts: list[str], clip_skip: int = 0) -> torch.Tensor:
    return encode_prompts(pipeline.tokenizer, pipeline.text_encoder, prompts, clip_skip)


def test_features_are_those_that_the_stock_pipeline_feeds(pipeline: Any) -> None:
    stock, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(encoded(pipeline, PROMPTS), stock)


def test_features_have_77_positions_and_the_encoders_width(pipeline: Any) -> None:
    assert encoded(pipeline, PROMPTS).shape == (4, 77, 32)


def test_equal_prompts_are_encoded_once(pipeline: Any) -> None:
    rows: list[int] = []
    hook = pipeline.text_encoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        encoded(pipeline, PROMPTS)
    finally:
        hook.remove()
    assert rows == [3]


def test_more_prompts_than_one_batch_keep_their_order(pipeline: Any) -> None:
    prompts = [f"a cat {number}" for number in range(40)]
    torch.testing.assert_close(encoded(pipeline, prompts)[37], encoded(pipeline, [prompts[37]])[0])


def test_clip_skip_leaves_out_blocks_and_keeps_the_final_norm(pipeline: Any) -> None:
    encoder = pipeline.text_encoder
    body = getattr(encoder, "text_model", encoder)
    outputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in body.encoder.layers
    ]
    try:
        encoded(pipeline, ["a cat"])
    finally:
        for hook in hooks:
            hook.remove()
    skipped = encoded(pipeline, ["a cat"], clip_skip=2)
    torch.testing.assert_close(skipped, body.final_layer_norm(outputs[-3]))


@pytest.mark.parametrize("clip_skip", [-1, 12])
def test_clip_skip_out_of_range_is_refused(pipeline: Any, clip_skip: int) -> None:
    with pytest.raises(SurgeryError, match="12 blocks"):
        encoded(pipeline, ["a cat"], clip_skip)


def test_prompts_read_in_pieces_are_their_pieces_read_by_themselves(pipeline: Any) -> None:
    found = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["a dog", LONG], in_pieces=True)
    ids = pipeline.tokenizer(LONG, add_special_tokens=False).input_ids
    count = -(-len(ids) // 75)
    assert count > 1
    assert found.shape == (2, count * 77, 32)
    torch.testing.assert_close(found[0, :77], encoded(pipeline, ["a dog"])[0])
    torch.testing.assert_close(found[0, 77:154], encoded(pipeline, [""])[0])
    first = pipeline.tokenizer.decode(ids[:75])
    torch.testing.assert_close(found[1, :77], encoded(pipeline, [first])[0])


def test_short_prompts_read_in_pieces_are_as_ever_and_nothing_is_cut(
    pipeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, PROMPTS, in_pieces=True)
    assert torch.equal(found, encoded(pipeline, PROMPTS))
    encode_prompts(pipeline.tokenizer, pipeline.text_encoder, [LONG], in_pieces=True)
    assert "not read" not in caplog.text


def test_no_prompts_are_refused(pipeline: Any) -> None:
    with pytest.raises(SurgeryError, match="no prompts"):
        encoded(pipeline, [])


def test_a_prompt_that_is_too_long_is_named_with_what_was_cut(
    pipeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="surgery.diffusion.text"):
        features = encoded(pipeline, [LONG, "a dog"])
    stock, _ = pipeline.encode_prompt([LONG], "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(features[:1], stock)
    # 120 words of one token each, a start and an end
    (message,) = [record.getMessage() for record in caplog.records if record.name == "surgery.diffusion.text"]
    assert "has 122 tokens, of which 77 fit" in message
    assert brief(LONG) in message
    assert len(message) < 400
