"""Cross-attention as constants, behind a measured tolerance."""

from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.diffusion import predict_under, read_prompts
from surgery.errors import CheckpointError, MethodError
from surgery.methods.null_text import PictureSet, load_constants, measure_constants, save_constants
from surgery.methods.null_text.context import collapsed, cross_attentions


@pytest.fixture(scope="module")
def pictures() -> PictureSet:
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros_like(latents)
    return PictureSet(
        names=("a", "b", "c"),
        mean=latents,
        deviation=nothing,
        mirrored_mean=latents,
        mirrored_deviation=nothing,
    )


def test_the_error_is_that_of_the_collapsed_unet(models: Any, pictures: PictureSet, tmp_path: Path) -> None:
    found = measure_constants(models, pictures)
    assert set(found.vectors) == set(cross_attentions(models.unet)) == set(found.varies)
    assert 0 < found.error < 1
    assert len(found.by_timestep) == 8
    save_constants(found, tmp_path / "constants", found.error, {"patch": "x"})
    vectors = load_constants(tmp_path / "constants", models.unet)
    assert all(torch.equal(vectors[path], one) for path, one in found.vectors.items())
    null = read_prompts(models, [""]).repeated(3)
    with torch.no_grad():
        whole = predict_under(models, pictures.mean, 500, null)
        with collapsed(models.unet, vectors):
            flat = predict_under(models, pictures.mean, 500, null)
    assert float((flat - whole).norm() / whole.norm()) < 3 * found.error


def test_more_than_the_tolerance_is_refused_and_nothing_is_written(
    models: Any, pictures: PictureSet, tmp_path: Path
) -> None:
    found = measure_constants(models, pictures)
    with pytest.raises(MethodError, match="expected at most"):
        save_constants(found, tmp_path / "constants", found.error / 2, {})
    assert list(tmp_path.iterdir()) == []


def test_a_unet_that_reads_nothing_collapses_exactly(models: Any, pictures: PictureSet) -> None:
    deaf = copy(models)
    object.__setattr__(deaf, "unet", deepcopy(models.unet))
    for attention in cross_attentions(deaf.unet).values():
        attention.get_submodule("to_v").weight.data.zero_()  # type: ignore[operator]  # a linear layer
    assert measure_constants(deaf, pictures).error < 1e-6


def test_files_that_hold_no_constants_are_refused(models: Any, pictures: PictureSet, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    with pytest.raises(CheckpointError):
        load_constants(tmp_path / "text", models.unet)
    found = measure_constants(models, pictures, batch=2)
    path = next(iter(found.vectors))
    empty = replace(found, vectors={**found.vectors, path: torch.zeros_like(found.vectors[path])})
    save_constants(empty, tmp_path / "empty", 1.0, {})
    with pytest.raises(MethodError, match="of other names"):
        load_constants(tmp_path / "empty", torch.nn.Identity())
    with pytest.raises(MethodError, match="are nothing"):
        load_constants(tmp_path / "empty", models.unet)
