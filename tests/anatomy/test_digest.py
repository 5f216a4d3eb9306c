"""A digest changes with every bit of the weights, and with nothing else."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from surgery.anatomy import tensor_bytes, weights_digest


def test_bytes_are_those_of_the_tensor_in_row_order() -> None:
    assert tensor_bytes(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).T) == bytes([1, 3, 2, 4])


def test_copies_have_one_digest() -> None:
    module = nn.Linear(3, 2)
    assert weights_digest(module) == weights_digest(copy.deepcopy(module))


def test_the_sign_of_a_zero_changes_the_digest() -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.bias.zero_()
    before = weights_digest(module)
    with torch.no_grad():
        module.bias[0] = -0.0
    assert weights_digest(module) != before


def test_the_type_changes_the_digest() -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.zero_(), module.bias.zero_()
    assert weights_digest(module) != weights_digest(copy.deepcopy(module).half())


def test_settings_that_no_weight_tells_change_the_digest() -> None:
    def encoder(**settings: Any) -> CLIPTextModel:
        torch.manual_seed(0)
        sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1}
        return CLIPTextModel(CLIPTextConfig(**sizes, num_attention_heads=2, **settings))

    digests = {weights_digest(encoder(hidden_act=act)) for act in ("quick_gelu", "gelu", "gelu")}
    assert len(digests) == 2


def test_the_level_that_transformers_5_dropped_does_not_matter() -> None:
    class Older(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.text_model = inner

    module = nn.Sequential(nn.Linear(2, 2))
    assert weights_digest(Older(module)) == weights_digest(module)
