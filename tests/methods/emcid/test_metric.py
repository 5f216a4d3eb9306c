"""Distances as the U-Net's cross-attention reads them."""

from typing import Any

import pytest
import torch
from torch import nn

from surgery.errors import MethodError
from surgery.methods.emcid.metric import align, cross_attention_metric, gathered, token_distance


def test_metric_is_the_sum_over_the_layers_with_mean_eigenvalue_one(models: Any) -> None:
    values, keys = torch.zeros(32, 32), torch.zeros(32, 32)
    for name, weight in models.unet.named_parameters():
        if name.endswith("attn2.to_v.weight"):
            values += weight.T @ weight
        if name.endswith("attn2.to_k.weight"):
            keys += weight.T @ weight
    expected = 16 * (values / values.trace() + keys / keys.trace())
    metric = cross_attention_metric(models.unet, 32)
    torch.testing.assert_close(metric, expected)
    assert float(metric.trace() / 32) == pytest.approx(1.0)
    assert float(torch.linalg.eigvalsh(metric).min()) > -1e-5


def test_a_u_net_of_another_width_is_refused(models: Any) -> None:
    with pytest.raises(MethodError, match="none of which reads features of width 48"):
        cross_attention_metric(models.unet, 48)


def test_a_u_net_without_cross_attention_is_refused() -> None:
    with pytest.raises(MethodError, match="has 0 cross-attention layers"):
        cross_attention_metric(nn.Linear(2, 2), 2)


def test_tokens_pair_at_equal_distance_behind_the_subjects() -> None:
    # source "a cat in EOS" (subject 2), goal "a big dog in EOS" (subject 3)
    alignment = align(
        torch.tensor([2]), torch.tensor([3]), torch.tensor([True]), torch.tensor([5]), torch.tensor([6])
    )
    assert alignment.source.tolist() == [[2, 3, 4]]
    assert alignment.goal.tolist() == [[3, 4, 5]]
    assert alignment.weight.tolist() == [[0.5, 0.25, 0.25]]  # the subject as much as all others


def test_an_empty_destination_pairs_from_behind_its_place() -> None:
    # source "a cat EOS" (subject 2), goal "a EOS" (the token before the place is 1)
    alignment = align(
        torch.tensor([2]), torch.tensor([1]), torch.tensor([False]), torch.tensor([4]), torch.tensor([3])
    )
    assert alignment.weight.tolist() == [[0.0, 1.0]]
    assert (alignment.source[0, 1].item(), alignment.goal[0, 1].item()) == (3, 2)


def test_rows_of_unlike_length_share_one_tensor() -> None:
    alignment = align(
        torch.tensor([1, 3]),
        torch.tensor([1, 3]),
        torch.tensor([True, True]),
        torch.tensor([3, 4]),
        torch.tensor([3, 4]),
    )
    assert alignment.weight.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert int(alignment.source.max()) < 4


def test_distance_is_the_weighted_sum_of_quadratic_forms() -> None:
    generator = torch.Generator().manual_seed(0)
    source, goal = torch.randn(2, 4, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    root = torch.randn(3, 3, generator=generator)
    alignment = align(
        torch.tensor([1, 3]),
        torch.tensor([2, 3]),
        torch.tensor([True, True]),
        torch.tensor([4, 4]),
        torch.tensor([4, 4]),
    )
    found = token_distance(source, gathered(goal, alignment.goal), alignment, root.T @ root)
    first = [root @ (source[0, 1 + step] - goal[0, 2 + step]) for step in range(2)]
    second = root @ (source[1, 3] - goal[1, 3])
    expected = [sum(one.square().sum() / 3 for one in first) / 2, second.square().sum() / 3]
    torch.testing.assert_close(found, torch.stack([torch.as_tensor(value) for value in expected]))
