"""A step towards a second model, told by the share that fits."""

from pathlib import Path

import pytest
import torch

from surgery.audit.merge import MergeFit, fit_merge
from surgery.audit.sides import CheckpointPair
from surgery.audit.tensors import tensor_rows
from surgery.checkpoint import open_checkpoint
from tests.audit.folders import Tensors, changed, pair, weights
from tests.support.folders import write_folder


def fit(folder: Path, after: Tensors, other: Tensors) -> MergeFit | None:
    first, second = pair(folder, weights(torch.float16), after)
    sides = CheckpointPair(base=open_checkpoint(first), edited=open_checkpoint(second))
    third = open_checkpoint(write_folder(folder / "other", other))
    return fit_merge(sides, third, tensor_rows(sides, spectra=False))


def test_a_merge_shows_its_share_of_the_other_model(tmp_path: Path) -> None:
    other = weights(torch.float16, seed=1)
    flat = {f"{component}/{key}": tensor for component in other for key, tensor in other[component].items()}
    after = changed(weights(torch.float16), lambda name, old: (0.7 * old + 0.3 * flat[name]).half())
    found = fit(tmp_path, after, other)
    assert found is not None
    assert found.share == pytest.approx(0.3, abs=1e-3)
    assert found.explained > 0.9999
    assert found.tensors == len(flat)


def test_another_fine_tune_is_no_step_towards_it(tmp_path: Path) -> None:
    found = fit(tmp_path, weights(torch.float16, seed=2), weights(torch.float16, seed=1))
    assert found is not None
    # two independent steps from one base share the base's own half: cos² = 1/4
    assert found.explained == pytest.approx(0.25, abs=0.05)


def test_without_a_change_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert fit(tmp_path, weights(torch.float16), weights(torch.float16, seed=1)) is None
