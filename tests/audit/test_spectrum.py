"""Singular values of changes, against numpy's SVD and known spectra."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from surgery.audit import spectrum as module
from surgery.audit.sides import Block, Listed, sliced
from surgery.audit.spectrum import spectrum
from surgery.record import JSON
from surgery.report.audit_record import Spectrum


class Held:
    """Two sides that lie in memory."""

    has_base = True
    tensors: Mapping[str, Listed] = {}
    facts: Mapping[str, Mapping[str, JSON]] = {}

    def __init__(self, before: Tensor, after: Tensor) -> None:
        self.before, self.after = before, after

    def blocks(self, name: str, elements: int = 100) -> Iterator[Block]:
        return sliced(self.before, self.after, elements)


def of_change(change: Tensor, eps: float = 0.0, weight: Tensor | None = None) -> Spectrum:
    before = torch.zeros_like(change) if weight is None else weight
    return spectrum(
        Held(before, before + change),
        "unet/conv_in.weight",
        tuple(change.shape),
        weight_norm=float(before.double().norm()),
        change_norm=float(change.double().norm()),
        eps=eps,
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (12, 5, 3, 3)])
def test_a_small_spectrum_is_numpy_s(shape: tuple[int, ...]) -> None:
    change = random(*shape)
    expected = np.linalg.svd(change.double().reshape(shape[0], -1).numpy(), compute_uv=False)
    found = of_change(change)
    assert found.exact
    assert found.count == 12
    assert found.values == pytest.approx(expected, rel=1e-6)
    assert found.effective_rank == pytest.approx((expected**2).sum() ** 2 / (expected**4).sum(), rel=1e-6)


def test_equal_directions_count_by_their_number() -> None:
    change = torch.zeros(20, 30)
    change[:5, :5] = torch.eye(5)
    assert of_change(change).effective_rank == pytest.approx(5)


def test_only_the_largest_values_are_kept() -> None:
    found = of_change(random(100, 90))
    assert len(found.values) == 64
    assert found.count == 90
    assert found.rank == 90


def test_the_rank_of_a_rounded_low_rank_change_is_its_own() -> None:
    weight = random(200, 300).half()
    change = 0.05 * random(200, 3, seed=1) @ random(3, 300, seed=2)
    stored = (weight.float() + change).half()
    found = spectrum(
        Held(weight, stored),
        "unet/conv_in.weight",
        (200, 300),
        weight_norm=float(weight.float().norm()),
        change_norm=float((stored.float() - weight.float()).norm()),
        eps=torch.finfo(torch.float16).eps,
    )
    assert found.rank == 3
    assert found.values[3] < found.rounding < found.values[2]
    assert 1 - found.held == pytest.approx(found.rounding_share, rel=0.5)


def test_the_randomised_method_finds_the_largest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    change = random(300, 4, seed=1) @ random(4, 250, seed=2) + 0.01 * random(300, 250, seed=3)
    exact = of_change(change)
    monkeypatch.setattr(module, "EXACT_SIDE", 100)
    found = of_change(change)
    assert not found.exact
    assert found.values[:4] == pytest.approx(exact.values[:4], rel=1e-5)
    assert found.effective_rank == pytest.approx(exact.effective_rank, rel=0.15)


def test_the_randomised_effective_rank_of_noise_is_near_the_exact_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = random(300, 250)
    exact = of_change(change)
    monkeypatch.setattr(module, "EXACT_SIDE", 100)
    assert of_change(change).effective_rank == pytest.approx(exact.effective_rank, rel=0.1)


def test_a_wide_matrix_is_read_in_parts_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    change = random(3, 500)
    expected = np.linalg.svd(change.double().numpy(), compute_uv=False)
    assert of_change(change).values == pytest.approx(expected, rel=1e-6)


def test_values_that_are_no_numbers_count_as_unchanged() -> None:
    change = random(10, 10)
    weight = torch.zeros(10, 10)
    weight[0] = float("inf")
    expected = change.clone()
    expected[0] = 0
    after = weight + change
    found = spectrum(
        Held(weight, after), "unet/x", (10, 10), weight_norm=1.0, change_norm=float(expected.norm()), eps=0.0
    )
    assert found.values == pytest.approx(torch.linalg.svdvals(expected.double()).tolist(), abs=1e-6)
