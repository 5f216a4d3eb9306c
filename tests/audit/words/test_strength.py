"""How strongly a change acts on inputs: told from edits whose keys are known."""

import math

import pytest
import torch
from torch import Tensor

from surgery.audit.words.inputs import Inputs
from surgery.audit.words.strength import acting, acting_on_tokens

WIDTH, OUT, KEYS = 48, 20, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def usual() -> Tensor:
    """A second moment whose strongest direction is a thousand times its weakest."""
    basis = torch.linalg.qr(random(WIDTH, WIDTH, seed=1)).Q
    made: Tensor = basis @ torch.diag(torch.logspace(0, -3, WIDTH, dtype=torch.float64)) @ basis.T
    return made


def drawn(usual: Tensor, count: int, seed: int) -> Tensor:
    """Inputs that are as ordinary as can be: of that very second moment."""
    made: Tensor = random(count, WIDTH, seed=seed) @ torch.linalg.cholesky(usual).T
    return made


def edit(usual: Tensor, keys: Tensor) -> Tensor:
    """R Kᵀ (C + KKᵀ)⁻¹: what EMCID and MEMIT add for the keys."""
    made: Tensor = random(OUT, len(keys), seed=3) @ torch.linalg.solve(usual + keys.T @ keys, keys.T).T
    return made


def test_edited_inputs_lie_wholly_in_the_change_and_others_by_chance(usual: Tensor) -> None:
    keys, others = drawn(usual, KEYS, 4), drawn(usual, 200, 5)
    found = acting(edit(usual, keys).float(), Inputs(phrases=torch.cat([keys, others]), usual=usual))
    assert (found.shares[:KEYS] > 0.99).all()
    # a random direction has KEYS of WIDTH parts in a space of KEYS dimensions
    assert float(found.shares[KEYS:].mean()) == pytest.approx(KEYS / WIDTH, rel=0.15)
    assert (found.shares <= 1 + 1e-9).all()


def test_the_control_knows_no_key(usual: Tensor) -> None:
    keys = drawn(usual, KEYS, 4)
    found = acting(edit(usual, keys), Inputs(phrases=keys, usual=usual))
    assert float(found.shares.min()) > 0.99
    assert float(found.controls.max()) < 0.5


def test_an_odd_input_is_told_by_its_activation_and_not_by_its_share(usual: Tensor) -> None:
    """In the weakest direction of what usually arrives, ‖ΔW c‖ is large for whatever edit spares it least."""
    odd = 30 * torch.linalg.eigh(usual).eigenvectors[:, :1].T
    keys, ordinary = drawn(usual, KEYS, 4), drawn(usual, 50, 6)
    change = edit(usual, keys)
    assert (change @ odd.T).norm() > (change @ ordinary.T).norm(dim=0).max()
    found = acting(change, Inputs(phrases=torch.cat([odd, ordinary]), usual=usual))
    assert found.shares[0] < 0.5
    assert found.activations[0] > 100 * found.activations[1:].max()
    assert float(found.activations[1:].mean()) == pytest.approx(1, rel=0.2)


def test_tall_and_wide_changes_of_one_row_space_hear_alike(usual: Tensor) -> None:
    keys, others = drawn(usual, KEYS, 4), drawn(usual, 20, 5)
    inputs = Inputs(phrases=torch.cat([keys, others]), usual=usual)
    wide = edit(usual, keys)
    tall = torch.linalg.qr(random(3 * WIDTH, OUT, seed=8)).Q @ wide
    assert torch.allclose(acting(tall, inputs).shares, acting(wide, inputs).shares, atol=1e-6)


def test_a_changed_token_vector_is_heard_by_the_phrases_that_hold_it() -> None:
    change = torch.zeros(6, 4)
    change[2, 1] = 0.5
    found = acting_on_tokens(change, [(2,), (0, 2), (1, 3, 4), (2, 2)])
    assert found.shares.tolist() == [1.0, 0.5, 0.0, 1.0]
    assert not found.controls.any()
    assert math.isclose(float(found.activations.sum()), 4)
