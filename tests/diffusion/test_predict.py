from typing import Any

import torch

from surgery.diffusion import encode_prompts, guided_noise, predict_noise


def test_guided_noise_is_the_formula_on_two_plain_predictions(pipeline: Any) -> None:
    text = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["a cat"])
    without = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, [""])
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    conditional = predict_noise(pipeline.unet, latents, 500, text)
    unconditional = predict_noise(pipeline.unet, latents, 500, without)
    guided = guided_noise(pipeline.unet, latents, 500, text, without, 5.0)
    torch.testing.assert_close(guided, unconditional + 5.0 * (conditional - unconditional))


def test_gradients_flow_to_the_text(pipeline: Any) -> None:
    text = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["a cat"]).requires_grad_()
    noise = predict_noise(pipeline.unet, torch.zeros(1, 4, 8, 8), torch.tensor([10]), text)
    (slope,) = torch.autograd.grad(noise.sum(), text)
    assert slope.abs().sum() > 0
