"""Deltas are a vector space of named changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from surgery.delta import Delta, Dense, Form, LowRank
from surgery.delta.algebra import materialise, singular_values
from surgery.errors import NumericsError

A, B = "unet/a.weight", "text_encoder/text_model.b.weight"
SHAPE = (5, 7)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def form_of(kind: str, seed: int, rank: int = 2) -> Form:
    if kind == "dense":
        return Dense(random(*SHAPE, seed=seed))
    return LowRank(random(SHAPE[0], rank, seed=seed), random(rank, SHAPE[1], seed=seed + 1000))


kinds = st.sampled_from(["dense", "low rank"])
seeds = st.integers(0, 10_000)
strengths = st.floats(-3, 3)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    # a handful of float64 operations on numbers of order ten
    return torch.allclose(first, second, rtol=0, atol=1e-13)


@given(kinds, kinds, seeds)
def test_sums_commute(first: str, second: str, seed: int) -> None:
    p, q = Delta({A: form_of(first, seed)}), Delta({A: form_of(second, seed + 1)})
    assert close((p + q).materialise(A), (q + p).materialise(A))


@given(kinds, kinds, kinds, seeds)
def test_sums_associate(first: str, second: str, third: str, seed: int) -> None:
    p, q, r = (Delta({A: form_of(kind, seed + 9 * i)}) for i, kind in enumerate((first, second, third)))
    assert close(((p + q) + r).materialise(A), (p + (q + r)).materialise(A))


@given(kinds, kinds, seeds, strengths)
def test_strength_distributes_over_sums(first: str, second: str, seed: int, strength: float) -> None:
    p, q = Delta({A: form_of(first, seed)}), Delta({A: form_of(second, seed + 1)})
    left, right = strength * (p + q), strength * p + strength * q
    assert close(left.materialise(A), right.materialise(A))


@given(kinds, seeds)
def test_a_delta_and_its_opposite_cancel(kind: str, seed: int) -> None:
    delta = Delta({A: form_of(kind, seed)})
    cancelled = delta + -1.0 * delta
    assert close(cancelled.materialise(A), torch.zeros(SHAPE).double())
    assert cancelled.norms()[A] < 1e-13


def test_tensors_of_either_delta_are_kept() -> None:
    total = Delta({A: form_of("dense", 0)}) + Delta({B: form_of("low rank", 1)})
    assert set(total.terms) == {A, B}
    assert (Delta() + total).terms.keys() == total.terms.keys()


def test_low_ranks_stay_low() -> None:
    total = Delta({A: form_of("low rank", 0, rank=2)}) + Delta({A: form_of("low rank", 1, rank=1)})
    form = total.terms[A]
    assert isinstance(form, LowRank)
    assert form.left.shape == (5, 3)
    assert total.ranks() == {A: 3}


@given(seeds, st.integers(0, 4))
def test_a_low_rank_product_is_the_matrix_product(seed: int, rank: int) -> None:
    form = form_of("low rank", seed, rank=rank)
    assert isinstance(form, LowRank)
    assert close(materialise(form), form.left @ form.right)


def test_blocks_of_rows_do_not_change_the_product() -> None:
    left, right = random(300, 3, seed=1), random(3, 500, seed=2)
    whole = materialise(LowRank(left, right))
    for row in (0, 130, 131, 299):
        assert torch.equal(whole[row], materialise(LowRank(left[row : row + 1], right))[0])


@given(kinds, seeds)
def test_singular_values_agree_with_scipy(kind: str, seed: int) -> None:
    form = form_of(kind, seed)
    expected = linalg.svdvals(materialise(form).numpy())
    found = singular_values(form)
    assert torch.allclose(found, torch.from_numpy(expected)[: len(found)], atol=1e-12)


@given(kinds, seeds)
def test_norms_are_frobenius_norms(kind: str, seed: int) -> None:
    delta = Delta({A: form_of(kind, seed)})
    squares = sum(value * value for value in delta.materialise(A).flatten().tolist())
    assert delta.norms()[A] == pytest.approx(squares**0.5, rel=1e-12)


def test_kernels_and_vectors_have_norms_too() -> None:
    delta = Delta({A: Dense(torch.ones(2, 2, 3, 3)), B: Dense(torch.tensor([3.0, 4.0]))})
    assert delta.norms() == pytest.approx({A: 6.0, B: 5.0})
    assert delta.ranks() == {A: 1, B: 1}


def test_scaling_half_precision_factors_loses_nothing() -> None:
    form = LowRank(torch.tensor([[1.0]]).half(), torch.tensor([[1.0]]).half())
    assert (0.1 * Delta({A: form})).materialise(A).item() == 0.1


def test_changes_of_different_shapes_are_not_added() -> None:
    with pytest.raises(NumericsError, match=r"\(5, 7\) and \(7, 5\)"):
        Delta({A: Dense(torch.ones(5, 7))}) + Delta({A: Dense(torch.ones(7, 5))})


def test_factors_that_do_not_meet_are_refused() -> None:
    with pytest.raises(NumericsError, match=r"\(d_out, rank\) and \(rank, d_in\)"):
        LowRank(torch.ones(3, 2), torch.ones(3, 4))


def test_integers_are_no_change() -> None:
    with pytest.raises(NumericsError, match="floating point was expected"):
        Dense(torch.ones(2, dtype=torch.int32))


def test_names_must_be_canonical() -> None:
    with pytest.raises(NumericsError, match="no canonical tensor name"):
        Delta({"text_model.b.weight": Dense(torch.ones(2))})


def test_asking_for_another_tensor_gives_the_nearest() -> None:
    with pytest.raises(NumericsError, match=f"Did you mean '{A}'"):
        Delta({A: form_of("dense", 0)}).materialise("unet/a.wieght")
