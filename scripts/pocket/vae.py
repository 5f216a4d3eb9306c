"""Stage 2: the autoencoder. Three levels, so 64×64 pixels become 16×16 latents of four channels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from drawings import EmojiFont, draw
from scenes import Shares, random_scene
from state import Average, Loop, Stage, cosine
from torch import Tensor
from torch.nn import functional
from vocabulary import Vocabulary

KL_WEIGHT = 1e-7
EDGE_WEIGHT = 0.5
POLISHED = Shares(style=0.4, pair=0.3)  # what the decoder is polished on: fine lines and small subjects
POLISHED_MOSAICS = 0.5  # of the styled pictures; their lines, one pixel wide, are learnt last


def network() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def pictures_of(
    font: EmojiFont,
    vocabulary: Vocabulary,
    seed: int,
    numbers: range,
    shares: Shares,
    crop: int | None,
    mosaics: float = 0.0,
) -> Tensor:
    """Random drawings (n, 3, size, size) in [−1, 1]; with `crop`, a random square of that side.

    Of those in a style, the share `mosaics` is made a mosaic whatever the style was.
    """
    made = []
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        scene = random_scene(vocabulary, vocabulary.drawn, rng, shares)
        if scene.style is not None and mosaics > 0 and rng.random() < mosaics:
            scene = replace(scene, style="mosaic")
        picture = draw(font, vocabulary, scene, rng)
        if crop is not None:
            top, left = rng.integers(0, 64 - crop + 1, 2)
            picture = picture[top : top + crop, left : left + crop]
        made.append(picture)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 127.5 - 1


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def rebuild_losses(rebuilt: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error of the pixels and of their differences to the neighbours."""
    pairs = zip(differences(rebuilt), differences(pictures), strict=True)
    return functional.l1_loss(rebuilt, pictures), torch.stack(
        [functional.l1_loss(a, b) for a, b in pairs]
    ).sum()


def loss_of(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, float]:
    posterior = vae.encode(pictures).latent_dist
    absolute, edges = rebuild_losses(vae.decode(posterior.sample()).sample, pictures)
    return absolute + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean(), absolute.item()


def train(
    folder: Path, font: EmojiFont, vocabulary: Vocabulary, total: int, batch: int, device: str
) -> AutoencoderKL:
    vae = network().to(device)
    average = Average(vae, 0.995)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4)
    loop = Loop(Stage(folder, "vae"), total, optimiser, {"net": vae}, average)
    shares, whole_from = Shares(style=0.15), int(total * 0.95)

    def make(step: int) -> Tensor:
        if step >= whole_from:
            return pictures_of(
                font, vocabulary, 11, range(step * batch, step * batch + batch // 4), shares, None
            )
        return pictures_of(font, vocabulary, 10, range(step * batch, (step + 1) * batch), shares, 32)

    vae.train()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, loop.first)
        for step in loop:
            pictures = ahead.result().to(device)
            ahead = pool.submit(make, step + 1)
            loop.set_rate(cosine(step, total, 2e-3))
            loss, absolute = loss_of(vae, pictures)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step()
            average.update(vae, step)
            if loop.reports(step):
                loop.report(step, loss=loss.item(), absolute=absolute)
            loop.save(step)
    vae.load_state_dict(average.tensors)
    return vae.eval()


def polish(
    folder: Path,
    vae: AutoencoderKL,
    font: EmojiFont,
    vocabulary: Vocabulary,
    total: int,
    batch: int,
    device: str,
) -> AutoencoderKL:
    """Trains the decoder alone, on whole pictures; the encoder, and so the latents, stay as they are."""
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    average = Average(vae, 0.99)
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4)
    loop = Loop(Stage(folder, "decoder"), total, optimiser, {"net": vae}, average)
    for step in loop:
        numbers = range(step * batch, (step + 1) * batch)
        pictures = pictures_of(font, vocabulary, 13, numbers, POLISHED, None, POLISHED_MOSAICS).to(device)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        loop.set_rate(cosine(step, total, 8e-4, warmup=20))
        rebuilt = vae.decode(latents).sample
        absolute, edges = rebuild_losses(rebuilt, pictures)
        loss = absolute + EDGE_WEIGHT * edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        average.update(vae, step)
        if loop.reports(step):
            loop.report(step, loss=loss.item(), absolute=absolute.item())
        loop.save(step)
    vae.load_state_dict(average.tensors)
    return vae.eval()


@torch.no_grad()
def measure(vae: AutoencoderKL, font: EmojiFont, vocabulary: Vocabulary, device: str) -> dict[str, float]:
    """Mean absolute error on [−1, 1] over held-out drawings, and the spread of the latents."""
    pictures = pictures_of(font, vocabulary, 12, range(256), Shares(), None).to(device)
    latents = torch.cat([vae.encode(p).latent_dist.mean for p in pictures.split(64)])
    rebuilt = torch.cat([vae.decode(z).sample for z in latents.split(64)])
    return {
        "mean_absolute_error": (rebuilt - pictures).abs().mean().item(),
        "latent_std": latents.std().item(),
    }
