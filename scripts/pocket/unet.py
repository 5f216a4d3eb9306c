"""Stage 4: the denoiser, trained on stored latents and text features; small pictures first, then whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import team
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from drawings import EmojiFont, Scene, draw
from scenes import Captioned, Shares, caption, random_scene
from state import Average, Loop, Stage, report
from text import WIDTH, encode
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer
from vocabulary import Vocabulary

SHARES = Shares(pair=0.34, style=0.2)
WIDTHS = (48, 96, 128, 128)  # the two of a pair are drawn at the finer levels
EMPTY_SHARE = 0.1
HEAVIEST = 25.0
AVERAGED_EVERY = 8  # steps, when several processes train


def network(widths: tuple[int, int, int, int] = WIDTHS, sample_size: int = 16) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def noise_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )


class PairMixer:
    """Pairs that nobody drew: the upper left of one stored pair with the lower right of another.

    Each member keeps to its corner, and halves of one background fit together. Stored pairs alone are learnt
    by heart: each is one of many thousand possible ones, and seen again and again.
    """

    def __init__(
        self, vocabulary: Vocabulary, scenes: list[Scene], encode_texts: Callable[[list[str]], Tensor]
    ) -> None:
        self._vocabulary, self._scenes, self._encode = vocabulary, scenes, encode_texts
        self._forbidden = held_out_pairs(vocabulary)
        self._pairs: dict[str, list[int]] = {}
        for number, scene in enumerate(scenes):
            if len(scene.subjects) == 2:
                self._pairs.setdefault(scene.background, []).append(number)

    def mix(self, stored: Tensor, rows: Tensor, latents: Tensor, context: Tensor, step: int) -> None:
        """Changes the pairs among `latents` and `context`, which are copies of the stored `rows`.

        Text features are made for the rows of this process only.
        """
        texts, last = {}, stored.shape[-1] - 1
        across = torch.arange(last + 1)
        second = across[:, None] + across[None, :] > last  # below the diagonal from down left to up right
        for place, row in enumerate(rows.tolist()):
            if len(self._scenes[row].subjects) == 2:
                rng = np.random.default_rng((step, place))
                other, scene = self._partner(row, rng)
                latents[place, :, second] = stored[other][:, second].to(latents)
                texts[place] = caption(self._vocabulary, scene, rng, SHARES, "train").caption
        own = [place for place in texts if place % team.size() == team.rank()]
        if own:
            context[own] = self._encode([texts[place] for place in own])

    def _partner(self, row: int, rng: np.random.Generator) -> tuple[int, Scene]:
        scene = self._scenes[row]
        first, others = scene.subjects[0], self._pairs[scene.background]
        while True:
            other = others[int(rng.integers(len(others)))]
            second = self._scenes[other].subjects[1]
            names = frozenset((first.concept.name, second.concept.name))
            if len(names) == 2 and names not in self._forbidden:
                return other, replace(scene, subjects=(first, second))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Drawings as scaled latents (n, 4, h, w), and text features of captions (captions, tokens, width).

    Rows are taken as often as `weights` (n,) say, all alike when it is left out; with a `mixer`, pairs among
    them are put together anew.
    """

    latents: Tensor
    caption_of: Tensor
    features: Tensor
    empty: Tensor
    weights: Tensor | None = None
    mixer: PairMixer | None = None

    def rows(self, count: int, generator: torch.Generator) -> Tensor:
        if self.weights is None:
            return torch.randint(len(self.latents), (count,), generator=generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def held_out_pairs(vocabulary: Vocabulary, count: int = 60) -> frozenset[frozenset[str]]:
    """Pairs of concepts that never stand side by side in training."""
    rng = np.random.default_rng(77)
    things = [c.name for c in vocabulary.drawn if not c.is_profession]
    return frozenset(frozenset(str(n) for n in rng.choice(things, 2, replace=False)) for _ in range(count))


def captioned(
    vocabulary: Vocabulary, seed: int, number: int, forbidden: frozenset[frozenset[str]]
) -> Captioned:
    rng = np.random.default_rng((seed, number))
    scene = random_scene(vocabulary, vocabulary.drawn, rng, SHARES, forbidden)
    return caption(vocabulary, scene, rng, SHARES, "train")


def scenes_of(vocabulary: Vocabulary, seed: int, count: int) -> list[Scene]:
    """What the stored pictures show, row by row."""
    forbidden = held_out_pairs(vocabulary)
    return [captioned(vocabulary, seed, number, forbidden).scene for number in range(count)]


def weights_of_kinds(scenes: list[Scene], *, pair: float, style: float) -> Tensor:
    """Weights with which pairs and named styles make those shares of the rows taken; one on the mean."""
    count = len(scenes)
    pairs = torch.tensor([len(scene.subjects) == 2 for scene in scenes])
    styled = torch.tensor([scene.style is not None for scene in scenes])  # never with pairs
    weights = torch.zeros(count, dtype=torch.float64)
    for rows, share in ((pairs, pair), (styled, style), (~pairs & ~styled, 1 - pair - style)):
        weights[rows] = share * count / int(rows.sum())
    return weights


@torch.no_grad()
def make_latents(
    folder: Path,
    name: str,
    font: EmojiFont,
    vocabulary: Vocabulary,
    vae: AutoencoderKL,
    *,
    count: int,
    size: int,
    scale: float,
    seed: int,
) -> Tensor:
    """Draws and encodes `count` pictures of side `size`, half precision; a second call reads them back."""
    stage = Stage(folder, name)
    stored = stage.load()
    if stored is not None and len(stored["latents"]) >= count:
        kept: Tensor = stored["latents"][:count]
        return kept
    device = next(vae.parameters()).device
    forbidden, started, latents = held_out_pairs(vocabulary), time.monotonic(), []
    for start in range(0, count, 128):
        drawn = []
        for number in range(start, min(start + 128, count)):
            scene = captioned(vocabulary, seed, number, forbidden).scene
            drawn.append(draw(font, vocabulary, scene, np.random.default_rng((seed + 1, number))))
        pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        if size != pictures.shape[-1]:
            pictures = functional.interpolate(pictures, size=size, mode="area")
        latents.append((vae.encode(pictures).latent_dist.mean * scale).half().cpu())
        if start % 4096 == 0:
            report(name, start + 1, count, started)
    made = torch.cat(latents)
    stage.save({"latents": made}, force=True)
    return made


@torch.no_grad()
def make_features(
    folder: Path,
    name: str,
    vocabulary: Vocabulary,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    count: int,
    length: int,
    seed: int,
) -> dict[str, Tensor]:
    """Text features of the same `count` scenes, each distinct caption once; a second call reads them back."""
    stage = Stage(folder, name)
    stored = stage.load()
    if stored is not None and len(stored["caption_of"]) >= count:
        return {**stored, "caption_of": stored["caption_of"][:count]}
    forbidden, started = held_out_pairs(vocabulary), time.monotonic()
    texts = [captioned(vocabulary, seed, number, forbidden).caption for number in range(count)]
    unique = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ordered, features = list(unique), []
    for start in range(0, len(ordered), 128):
        features.append(encode(encoder, tokenizer, ordered[start : start + 128], length).half().cpu())
        if start % 4096 == 0:
            report(name, start + 1, len(ordered), started)
    stored = {
        "caption_of": torch.tensor([unique[text] for text in texts]),
        "features": torch.cat(features),
        "empty": encode(encoder, tokenizer, [""], length).half().cpu(),
    }
    stage.save(stored, force=True)
    return stored


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps, half uniform, half from the noisy end, where only the caption tells what is shown."""
    uniform = torch.rand(count, generator=generator)
    noisy = torch.rand(count, generator=generator) < 0.5
    return (torch.where(noisy, 0.5 + 0.5 * uniform, uniform) * 1000).long()


def loss_of(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    latents: Tensor,
    context: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The noise loss of this process's share of a batch; all processes draw the noise of the whole batch.

    An error of the noise is weighted as the same error of the velocity (Salimans & Ho 2022), up to
    HEAVIEST: in nothing but noise the picture is a small part of what the network sees, and a name would
    have almost no say in the plain mean.
    """
    noise = team.share(torch.randn(latents.shape, generator=generator)).to(latents.device)
    times = team.share(timesteps(len(latents), generator)).to(latents.device)
    noisy = scheduler.add_noise(team.share(latents), noise, times)
    inputs = noisy.contiguous(memory_format=torch.channels_last)
    off = (unet(inputs, times, team.share(context)).sample - noise).square().mean(dim=(1, 2, 3))
    weights = (1 / scheduler.alphas_cumprod.to(latents.device)[times]).clamp(max=HEAVIEST)
    loss: Tensor = (weights * off).mean()
    return loss


def train(
    folder: Path,
    name: str,
    pool: Pool,
    unet: UNet2DConditionModel,
    *,
    total: int,
    batch: int,
    rate: Callable[[int], float],
    device: str,
    decay: float = 0.9993,
) -> UNet2DConditionModel:
    """Goes on from where the stage `name` was left, up to `total` steps at the learning rate `rate(step)`."""
    unet = unet.to(device, memory_format=torch.channels_last)
    average = Average(unet, decay)
    optimiser = torch.optim.AdamW(
        unet.parameters(), lr=rate(0), weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    loop = Loop(Stage(folder, name, every_s=120), total, optimiser, {"net": unet}, average)
    scheduler, running = noise_scheduler(), 0.0
    unet.train()
    for step in loop:
        generator = torch.Generator().manual_seed(1_000_003 * len(name) + step)
        rows = pool.rows(batch, generator)
        drawn, context = pool.latents[rows].float(), pool.features[pool.caption_of[rows]].float()
        if pool.mixer is not None:
            pool.mixer.mix(pool.latents, rows, drawn, context, step)
        empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
        context[empty] = pool.empty.float()
        loop.set_rate(rate(step))
        loss = loss_of(unet, scheduler, drawn.to(device), context.to(device), generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        if step % AVERAGED_EVERY == AVERAGED_EVERY - 1 or loop.is_last(step):
            team.average_weights(unet.parameters())
        average.update(unet, step)
        running = loss.item() if step == loop.first else 0.98 * running + 0.02 * loss.item()
        if team.rank() != 0:
            continue
        if loop.reports(step):
            loop.report(step, loss=running, **binding(unet, scheduler, pool, device))
        loop.save(step, sample_size=unet.config.sample_size)
    unet.load_state_dict(average.tensors)
    return unet.eval()


@torch.no_grad()
def binding(
    unet: UNet2DConditionModel, scheduler: DDPMScheduler, pool: Pool, device: str
) -> dict[str, float]:
    """Loss with shuffled captions over loss with the right ones: above 1 as soon as names mean something."""
    rows = torch.randint(len(pool.latents), (64,), generator=torch.Generator().manual_seed(9))
    latents = pool.latents[rows].float().to(device)
    context = pool.features[pool.caption_of[rows]].float().to(device)
    unet.eval()
    right = loss_of(unet, scheduler, latents, context, torch.Generator().manual_seed(1))
    wrong = loss_of(unet, scheduler, latents, context.roll(1, 0), torch.Generator().manual_seed(1))
    unet.train()
    return {"binding": (wrong / right).item()}
