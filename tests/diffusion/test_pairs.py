from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from surgery.diffusion import before_and_after, sample, sample_table

PROMPTS = ["a cat", "a dog"]


@contextmanager
def louder(pipeline: Any) -> Iterator[Any]:
    """An edit in place that is taken back: the text encoder's last norm doubled."""
    norm = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder).final_layer_norm
    kept = norm.weight.clone()
    with torch.no_grad():
        norm.weight.mul_(2)
        yield pipeline
        norm.weight.copy_(kept)


def test_a_table_has_a_row_for_each_prompt_and_a_column_for_each_seed(pipeline: Any) -> None:
    table = sample_table(pipeline, PROMPTS, [5, 6, 7], steps=2)
    assert table.shape == (2, 3, 32, 32, 3)
    alone = sample(pipeline, ["a dog"], [7], steps=2)[0]
    # in another batch it may round otherwise
    assert np.abs(table[1, 2].astype(int) - alone.astype(int)).max() <= 1


def test_before_and_after_differ_by_the_edit_alone(pipeline: Any) -> None:
    before, after = before_and_after(pipeline, louder(pipeline), PROMPTS, [5, 6], steps=2)
    plain = sample_table(pipeline, PROMPTS, [5, 6], steps=2)
    with louder(pipeline):
        edited = sample_table(pipeline, PROMPTS, [5, 6], steps=2)
    assert np.array_equal(before, plain)
    assert np.array_equal(after, edited)
    assert (plain != edited).any()
