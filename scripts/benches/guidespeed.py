"""What guidance costs: branches in one pass or one by one, two evaluations or three, one U-Net or two.

Ways take turns, and medians of the rounds are compared. Memory is what the process holds that is no file's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import randomsd
import torch
from apart import apart
from PIL import Image

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.delta import Delta, LowRank
from surgery.diffusion import (
    Reading,
    encode,
    load_picture,
    noise_schedule,
    predict_noise,
    read_prompts,
)
from surgery.diffusion.inversion import PLAIN, Rung, cleaner
from surgery.guidance.branches import Branch, BranchExecutor
from surgery.guidance.scaling_concept import OBJECT, followed, invert_pictures, scale_schedule
from surgery.guidance.weights import MixedWeights, SwappedWeights, _factors
from surgery.methods.null_text import TrainSettings, read_pictures, train
from surgery.methods.null_text.door import layers_of, leaves_of
from surgery.patch import Patch, Term, make_patch
from surgery.shelf import checkpoint_path
from tests.support.measure import anonymous_bytes, peak_memory

MIXED: Final = 6
"""Of 20 steps: the published share of those in which latents are mixed."""


def guide_speed(options: argparse.Namespace) -> None:
    """Prints each comparison."""
    base = checkpoint_path(options.base)
    models = load_pipeline(base)
    patch = random_patch(base, models)
    print(f"{torch.get_num_threads()} threads, float32, medians of {options.rounds} rounds")
    _branches(options, models, patch)
    _scaling(options, models)
    _training(options, models)
    if options.full:
        _memory()


def random_patch(base: Path, models: Any, rank: int = 16) -> Patch:
    """Small factors beside every layer that a look is learned in."""
    checkpoint, generator = open_checkpoint(base), torch.Generator().manual_seed(0)
    terms = {}
    for name in layers_of(models.unet, "all"):
        rows, *inputs = checkpoint.shapes[name]
        width = int(np.prod(inputs))
        left, right = (torch.randn(size, generator=generator) for size in ((rows, rank), (rank, width)))
        terms[name] = LowRank(0.01 * left, right / width**0.5)
    return make_patch([Term(delta=Delta(terms), source="bench")], checkpoint)


def turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; ways take turns, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def told(what: str, found: dict[str, float]) -> None:
    first, *others = found
    rest = ", ".join(
        f"{name} {found[name]:.3f} s ({found[name] / found[first]:.2f} times)" for name in others
    )
    print(f"{what}: {first} {found[first]:.3f} s, {rest}", flush=True)


def _branches(options: argparse.Namespace, models: Any, patch: Patch) -> None:
    """Three branches of a step: mixed in one pass, mixed one by one, and adapters merged and taken out."""
    weights = MixedWeights(models, [patch])
    (term,) = patch.terms
    changes = {
        name.removeprefix("unet/"): term.delta.materialise(name)
        .float()
        .view_as(models.unet.get_parameter(name.removeprefix("unet/")))
        for name in term.delta.terms
    }
    for count in (1, 8):
        latents = torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(0))
        null, words = (read_prompts(models, [text]).repeated(count) for text in ("", "a photo of cat"))
        branches = [
            Branch(text=null, strengths=(0.0,)),
            Branch(text=null, strengths=(1.0,)),
            Branch(text=words, strengths=(0.0,)),
        ]

        def run(together: bool, latents: Any = latents, branches: Any = branches) -> None:
            executor = BranchExecutor(models=models, weights=weights, together=together)
            for _ in range(5):
                executor.predict(latents, 500, branches)

        def merged(latents: Any = latents, null: Any = null, words: Any = words) -> None:
            with torch.no_grad():
                for _ in range(5):
                    predict_noise(models.unet, latents, 500, null.features)
                    for name, change in changes.items():
                        models.unet.get_parameter(name).add_(change)
                    predict_noise(models.unet, latents, 500, null.features)
                    for name, change in changes.items():
                        models.unet.get_parameter(name).sub_(change)
                    predict_noise(models.unet, latents, 500, words.features)

        told(
            f"five steps of three branches, {count} pictures",
            turns(
                {
                    "one pass": lambda: run(True),
                    "one by one": lambda: run(False),
                    "merged and taken out": merged,
                },
                options.rounds,
            ),
        )


def _scaling(options: argparse.Namespace, models: Any) -> None:
    """Two evaluations a step, and the published form: guidance and a correction, three of them."""
    pixels = torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = invert_pictures(models, pixels, "cat", PLAIN, steps=20)
    settings = replace(OBJECT, exit_step=MIXED)
    null, words = (read_prompts(models, [text]).repeated(4) for text in ("", "cat"))

    scales = scale_schedule(settings, len(found.rungs))
    outcome = {}

    def three() -> None:
        latents = found.path[0]
        with torch.no_grad():
            for step, rung in enumerate(found.rungs):
                rows, texts = [latents, latents], [null.features, words.features]
                if step < settings.exit_step:
                    rows.append((latents + found.path[step]) / 2)
                    texts.append(words.features)
                seen = predict_noise(models.unet, torch.cat(rows), rung.timestep, torch.cat(texts))
                base, concept, *seen_mixed = seen.chunk(len(rows))
                noise = base + scales[step] * (concept - base)
                for one in seen_mixed:
                    noise = noise + scales[step] * (one - concept)
                latents = cleaner(latents, noise, rung)
        outcome["three"] = latents

    def both(latents: torch.Tensor, seen: torch.Tensor, rung: Rung) -> tuple[torch.Tensor, torch.Tensor]:
        rows, texts = torch.cat([latents, seen]), torch.cat([null.features, words.features])
        base, concept = predict_noise(models.unet, rows, rung.timestep, texts).chunk(2)
        return base, concept

    def two() -> None:
        outcome["two"] = followed(both, found.path, found.rungs, settings)

    told(f"scaling, 20 steps of which {MIXED} are mixed", turns({"two": two, "three": three}, options.rounds))
    gap = float((outcome["two"] - outcome["three"]).abs().max())
    print(f"  both end in the same latents, {gap:.1e} apart")


def _training(options: argparse.Namespace, models: Any) -> None:
    """A step with stored latents and keys and values known beforehand, and a plain one without."""
    with TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for number in range(16):
            Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(
                Path(folder) / f"{number}.png"
            )
        pictures = read_pictures(models, Path(folder))
        count = 4
        settings = TrainSettings(steps=count, check_every=count, held_out=0.0, average=0.0)
        files = sorted(Path(folder).glob("*.png"))
        schedule = noise_schedule(models.scheduler)

        def plain() -> None:
            with leaves_of(models, settings) as leaves:
                optimiser = torch.optim.AdamW(leaves.parameters.values(), lr=1e-4)
                for _ in range(count):
                    pixels = torch.stack([load_picture(path, 64, 64) for path in files])
                    mean, deviation = encode(models.vae, pixels)
                    clean = mean + deviation * torch.randn_like(mean)
                    text = read_prompts(models, [""] * len(clean))
                    noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
                    predicted = predict_noise(
                        models.unet, schedule.noisy(clean, noise, timesteps), timesteps, text.features
                    )
                    (predicted - noise).square().mean().backward()
                    optimiser.step()
                    optimiser.zero_grad()

        found = turns({"ours": lambda: train(models, pictures, settings), "plain": plain}, options.rounds)
        told(f"{count} updates of 16 pictures", found)


MEMORY: Final = ("two U-Nets", "one pass", "one by one", "swapped")


def _memory() -> None:
    """Peak memory of a step of three branches at the size of Stable Diffusion 1.5, above one U-Net.

    Each way has a process of its own.
    """
    for way in MEMORY:
        print(f"memory above one U-Net, SD 1.5: {way:10} {apart(above, way) / 1e9:.2f} GB")


def above(way: str) -> int:
    """Bytes above one U-Net that a way takes: weights, factors and one step."""
    unet = randomsd.unet("sd15")
    models = SimpleNamespace(unet=unet, vae=randomsd.vae("sd15"))
    features = torch.randn((1, 77, 768), generator=torch.Generator().manual_seed(0))
    latents = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(1))
    branches = [Branch(text=Reading(features=features), strengths=(one,)) for one in (0.0, 1.0, 0.0)]
    start = anonymous_bytes()
    with peak_memory() as peak, torch.no_grad():
        if way == "two U-Nets":
            other = deepcopy(unet)
            for name, form in _random_factors(unet):
                weight = other.get_parameter(name.removeprefix("unet/"))
                weight += (form.left @ form.right).view_as(weight)
            for one in (unet, other, unet):
                predict_noise(one, latents, 500, features)
        else:
            weights = _swapped(unet) if way == "swapped" else _mixed(unet)
            executor = BranchExecutor(models=models, weights=weights, together=way == "one pass")
            executor.predict(latents, 500, branches)
    return peak.count - start


def _random_factors(unet: Any) -> Iterator[tuple[str, LowRank]]:
    """Of rank 16, beside all layers."""
    generator = torch.Generator().manual_seed(2)
    for name in layers_of(unet, "all"):
        weight = unet.get_parameter(name.removeprefix("unet/"))
        rows, width = weight.shape[0], weight[0].numel()
        left, right = (torch.randn(size, generator=generator) for size in ((rows, 16), (16, width)))
        yield name, LowRank(0.01 * left, right / width**0.5)


# there is no file of this checkpoint that a patch could be made for


def _mixed(unet: Any) -> MixedWeights:
    weights = MixedWeights(SimpleNamespace(unet=unet), [])
    weights._layers = [
        (
            unet.get_submodule(name.removeprefix("unet/").removesuffix(".weight")),
            [_factors(unet.get_parameter(name.removeprefix("unet/")), form, 0, 1.0)],
        )
        for name, form in _random_factors(unet)
    ]
    return weights


def _swapped(unet: Any) -> SwappedWeights:
    changed = {}
    for name, form in _random_factors(unet):
        weight = unet.get_parameter(name.removeprefix("unet/"))
        changed[name] = weight + (form.left @ form.right).view_as(weight)
    return SwappedWeights(models=SimpleNamespace(unet=unet), values={(1.0,): changed})
