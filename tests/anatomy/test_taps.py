"""Taps read and replace, and let go whatever happens."""

from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy import frozen, reading, reading_inputs, replacing


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in module.modules())


class TupleBlock(nn.Module):
    """As blocks of transformers 4: the stream is the first of a tuple."""

    def forward(self, stream: torch.Tensor) -> tuple[torch.Tensor, str]:
        return stream + 1, "more"


def test_outputs_and_inputs_are_read() -> None:
    block = TupleBlock()
    with reading({"block": block}) as outputs, reading_inputs({"block": block}) as inputs:
        block(torch.zeros(2))
    assert (outputs["block"].tolist(), inputs["block"].tolist()) == ([1.0, 1.0], [0.0, 0.0])


def test_an_output_is_replaced_and_the_rest_of_a_tuple_kept() -> None:
    block = TupleBlock()
    with replacing(block, lambda stream: stream * 10):
        changed, more = block(torch.zeros(1))
    assert (changed.tolist(), more) == ([10.0], "more")
    assert block(torch.zeros(1))[0].tolist() == [1.0]


def test_taps_let_go_when_the_forward_pass_raises(encoder: Any) -> None:
    block = next(iter(encoder.encoder.layers))

    def fail(stream: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), reading({"a": block}), replacing(block, fail):
        encoder(torch.tensor([[1, 2]]))
    assert hooks(encoder) == 0


def test_a_tap_that_cannot_be_set_lets_the_others_go() -> None:
    block = TupleBlock()
    with pytest.raises(AttributeError), reading({"good": block, "bad": object()}):  # type: ignore[dict-item]
        pass
    assert hooks(block) == 0


def test_frozen_modules_are_as_before_afterwards() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    module[0].bias.requires_grad_(False)
    module[0].eval()
    with pytest.raises(RuntimeError, match="inside"), frozen(module, None):
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())
        raise RuntimeError("inside")
    assert [part.training for part in module.modules()] == [True, False, True]
    assert [weight.requires_grad for weight in module.parameters()] == [True, False]
