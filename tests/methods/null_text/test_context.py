"""The null context; numbers are those of section 4.2 of the study."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.diffusion import predict_noise, read_prompts
from surgery.methods.null_text.context import collapsed, constants_of, cross_attentions, known_context


@pytest.fixture(scope="module")
def unet(models: Any) -> Any:
    return deepcopy(models.unet).double()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def predicted(unet: Any, latents: Tensor, features: Tensor) -> Tensor:
    with torch.no_grad():
        return predict_noise(unet, latents, 400, features.double().expand(len(latents), -1, -1))


def points(latents: Tensor) -> Iterator[tuple[Tensor, int, None]]:
    for timestep in (900, 500, 100):
        yield latents, timestep, None


def test_known_keys_and_values_change_nothing_and_no_words_are_heard(  # 6
    models: Any, unet: Any, latents: Tensor
) -> None:
    null, words = (read_prompts(models, [prompt]).features for prompt in ("", "a cat"))
    plain = predicted(unet, latents, null)
    before = list(unet.modules())
    with known_context(unet, null):
        assert torch.equal(predicted(unet, latents, null), plain)
        assert torch.equal(predicted(unet, latents, words), plain)
    assert list(unet.modules()) == before
    assert not torch.equal(predicted(unet, latents, words), plain)


def test_a_context_of_zeros_collapses_to_the_output_s_bias(  # 5
    models: Any, unet: Any, latents: Tensor
) -> None:
    zeros = torch.zeros_like(read_prompts(models, [""]).features)
    constants, varies = constants_of(unet, points(latents), zeros)
    for path in cross_attentions(unet):
        bias = unet.get_parameter(f"{path}.to_out.0.bias")
        torch.testing.assert_close(constants[path], bias, rtol=0, atol=1e-10)
        assert varies[path] < 1e-6
    plain = predicted(unet, latents, zeros)
    with collapsed(unet, constants):
        torch.testing.assert_close(predicted(unet, latents, zeros), plain, rtol=0, atol=1e-10)


def test_a_collapsed_unet_hears_no_context(models: Any, unet: Any, latents: Tensor) -> None:  # 7
    null, words = (read_prompts(models, [prompt]).features for prompt in ("", "a cat"))
    constants, varies = constants_of(unet, points(latents), null)
    assert set(constants) == set(cross_attentions(unet))
    assert all(0 < share < 1 for share in varies.values())
    with collapsed(unet, constants):
        assert torch.equal(predicted(unet, latents, null), predicted(unet, latents, words))
    assert not any(one._forward_hooks for one in cross_attentions(unet).values())


def test_a_context_of_one_token_collapses_exactly(unet: Any, latents: Tensor) -> None:
    token = torch.randn((1, 1, 32), generator=torch.Generator().manual_seed(1)).expand(1, 77, -1)
    constants, varies = constants_of(unet, points(latents), token)
    assert max(varies.values()) < 1e-6
    plain = predicted(unet, latents, token)
    with collapsed(unet, constants):
        torch.testing.assert_close(predicted(unet, latents, token), plain, rtol=0, atol=1e-10)


def test_constants_are_means_over_timesteps_pictures_and_tokens(
    unet: Any, models: Any, latents: Tensor
) -> None:
    null = read_prompts(models, [""]).features.double()
    constants, _ = constants_of(unet, points(latents), null)
    path, attention = next(iter(cross_attentions(unet).items()))
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _module, _given, output: seen.append(output))
    with torch.no_grad():
        for noisy, timestep, _ in points(latents):
            predict_noise(unet, noisy, timestep, null.expand(2, -1, -1))
    handle.remove()
    torch.testing.assert_close(constants[path], torch.cat(seen).mean((0, 1)), rtol=0, atol=1e-10)
