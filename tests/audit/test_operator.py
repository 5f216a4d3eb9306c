"""One map G for many weights: found where it is, and not found where it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surgery.audit.operator import OperatorFit, _effective_rank, fit_operator
from surgery.audit.sides import CheckpointPair
from surgery.audit.tensors import tensor_rows
from surgery.checkpoint import open_checkpoint
from tests.audit.folders import TEXT, changed, low_rank, pair, weights

G = low_rank(torch.zeros(TEXT, TEXT), rank=2, size=0.3)


def fit(folder: Path, change: Callable[[str, Tensor], Tensor], dtype: torch.dtype) -> OperatorFit | None:
    before = weights(dtype)
    first, second = pair(folder, before, changed(before, change))
    sides = CheckpointPair(base=open_checkpoint(first), edited=open_checkpoint(second))
    return fit_operator(sides, tensor_rows(sides, spectra=False))


def crosses(name: str, *which: str) -> bool:
    return any(f"attn2.{one}" in name for one in which)


def test_a_shared_map_is_found_from_half_of_the_sites(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return weight + weight @ G if crosses(name, "to_k", "to_v") else weight

    found = fit(tmp_path, edit, torch.float32)
    assert found is not None
    assert found.roles == ("cross_key", "cross_value")
    assert found.explained == pytest.approx(1, abs=1e-6)
    assert (found.fitted, found.held_out) == (4, 4)
    assert 1 < found.effective_rank < 2.5


def test_rounding_to_half_hides_no_shared_map(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return (weight.float() + weight.float() @ G).half() if crosses(name, "to_k", "to_v") else weight

    found = fit(tmp_path, edit, torch.float16)
    assert found is not None
    assert found.explained > 0.999


def test_a_map_of_the_values_alone_is_told(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return weight + weight @ G if crosses(name, "to_v") else weight

    found = fit(tmp_path, edit, torch.float32)
    assert found is not None
    assert found.roles == ("cross_value",)
    assert found.explained == pytest.approx(1, abs=1e-6)


def test_keys_and_values_with_maps_of_their_own_are_not_one(tmp_path: Path) -> None:
    other = low_rank(torch.zeros(TEXT, TEXT), rank=2, size=0.3, seed=5)

    def edit(name: str, weight: Tensor) -> Tensor:
        if crosses(name, "to_v"):
            return weight + weight @ G
        return weight + weight @ other if crosses(name, "to_k") else weight

    found = fit(tmp_path, edit, torch.float32)
    assert found is not None
    assert len(found.roles) == 1
    assert found.explained == pytest.approx(1, abs=1e-6)


def test_changes_of_their_own_have_no_shared_map(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return weight + low_rank(weight, 2, seed=len(name)) if crosses(name, "to_k", "to_v") else weight

    found = fit(tmp_path, edit, torch.float32)
    assert found is not None
    assert found.explained < 0.5


def test_too_few_sites_say_nothing(tmp_path: Path) -> None:
    def edit(name: str, weight: Tensor) -> Tensor:
        return weight + weight @ G if crosses(name, "to_k") and "down_blocks.0" in name else weight

    assert fit(tmp_path, edit, torch.float32) is None


@pytest.mark.parametrize("rank", [1, 8, 60, 300])
def test_the_effective_rank_is_seen_through_few_directions(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.linalg.qr(torch.randn(400, rank, generator=generator).double()).Q for _ in range(2))
    probes = torch.randn(400, 64, dtype=torch.float64, generator=generator)
    assert _effective_rank(left @ (right.T @ probes)) == pytest.approx(rank, rel=0.15)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sites_that_hold_no_numbers_are_left_out(tmp_path: Path, bad: float) -> None:
    before = weights(torch.float32)
    after = changed(before, lambda name, weight: weight + weight @ G if crosses(name, "to_k") else weight)
    broken = next(name for name in before["unet"] if crosses(name, "to_k"))
    before["unet"][broken][0, 0] = bad
    first, second = pair(tmp_path, before, after)
    sides = CheckpointPair(base=open_checkpoint(first), edited=open_checkpoint(second))
    fit_operator(sides, tensor_rows(sides, spectra=False))  # too few sites are left, or enough


def test_weights_of_zeros_say_nothing(tmp_path: Path) -> None:
    before = changed(
        weights(torch.float32), lambda name, weight: weight * 0 if crosses(name, "to_k", "to_v") else weight
    )
    after = changed(before, lambda name, weight: weight + 1 if crosses(name, "to_k", "to_v") else weight)
    first, second = pair(tmp_path, before, after)
    sides = CheckpointPair(base=open_checkpoint(first), edited=open_checkpoint(second))
    assert fit_operator(sides, tensor_rows(sides, spectra=False)) is None
