"""Pictures behind the noise loss: drawn, given, mirrored, or none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.diffusion import decode, derived_seed, load_picture, sample_latents
from surgery.methods.emcid import OffsetSettings
from surgery.methods.emcid.pictures import clean_latents
from surgery.methods.emcid.views import views_of
from tests.support.concepts import CAT, PIZZA, concepts_of

QUICK = OffsetSettings(sampling_steps=2)


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """40 × 20 pixels: black, then white from the middle on."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "stripes.png")
    return tmp_path / "stripes.png"


@pytest.mark.parametrize(("images", "phrase"), [("source", "cat"), ("destination", "dog")])
def test_drawn_pictures_are_the_sampler_s_latents(models: Any, images: Any, phrase: str) -> None:
    views = views_of(concepts_of(models.tokenizer, CAT), QUICK)
    found = clean_latents(models, views, replace(QUICK, images=images))
    expected = sample_latents(
        models,
        [f"An image of {phrase}", f"A photo of {phrase}", phrase],
        [derived_seed(0, "picture", number) for number in range(3)],
        steps=2,
        guidance=7.5,
    )
    torch.testing.assert_close(found.mean, expected)
    assert found.deviation.abs().max() == 0


def test_recoded_pictures_are_the_posterior_of_the_decoded_ones(models: Any) -> None:
    views = views_of(concepts_of(models.tokenizer, CAT), QUICK)
    straight = clean_latents(models, views, QUICK)
    pixels = torch.from_numpy(decode(models.vae, straight.mean)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = models.vae.encode(pixels).latent_dist
    found = clean_latents(models, views, replace(QUICK, latents="recoded"))
    torch.testing.assert_close(found.mean, posterior.mean * 0.18215)
    torch.testing.assert_close(found.deviation, posterior.std * 0.18215)


def test_an_edit_s_own_pictures_are_used_and_make_as_many_views(models: Any, stripes: Path) -> None:
    own = replace(CAT, images=(stripes,) * 5)
    views = views_of(concepts_of(models.tokenizer, own), QUICK)
    assert [(view.number, view.template) for view in views] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]
    found = clean_latents(models, views, QUICK)
    with torch.no_grad():
        posterior = models.vae.encode(load_picture(stripes, 32, 32)[None]).latent_dist
    torch.testing.assert_close(found.mean[4], posterior.mean[0] * 0.18215)


def test_several_samples_for_each_prompt_are_that_many_pictures(models: Any) -> None:
    concepts = concepts_of(models.tokenizer, CAT)
    views = views_of(concepts, replace(QUICK, samples=2))
    assert [view.template for view in views] == [0, 1, 2, 0, 1, 2]
    found = clean_latents(models, views, QUICK).mean
    torch.testing.assert_close(found[:3], clean_latents(models, views_of(concepts, QUICK), QUICK).mean)
    assert not any(torch.equal(one, other) for one, other in zip(found[:3], found[3:], strict=True))
    assert len(views_of(concepts, replace(QUICK, samples=2, mode="text"))) == 3


def test_without_pictures_there_is_nothing(models: Any) -> None:
    views = views_of(concepts_of(models.tokenizer, CAT), QUICK)
    found = clean_latents(models, views, replace(QUICK, images="none"))
    assert found.mean.shape == (3, 4, 8, 8)
    assert found.mean.abs().max() == found.deviation.abs().max() == 0


def test_mirroring_is_drawn_once_per_picture_from_the_seed(models: Any) -> None:
    views = views_of(concepts_of(models.tokenizer, CAT, PIZZA), QUICK)
    plain = clean_latents(models, views, QUICK).mean
    mirrored = clean_latents(models, views, replace(QUICK, flip=True)).mean
    same = [torch.equal(one, other) for one, other in zip(plain, mirrored, strict=True)]
    turned = [torch.equal(one.flip(-1), other) for one, other in zip(plain, mirrored, strict=True)]
    assert all(one != other for one, other in zip(same, turned, strict=True))
    assert any(same)
    assert any(turned)


def test_pictures_do_not_depend_on_the_company(models: Any) -> None:
    both = clean_latents(models, views_of(concepts_of(models.tokenizer, CAT, PIZZA), QUICK), QUICK)
    alone = clean_latents(models, views_of(concepts_of(models.tokenizer, PIZZA), QUICK), QUICK)
    torch.testing.assert_close(both.mean[3:], alone.mean)
