"""Component attribution against the published scheme run plainly: what it costs, and how steady it is.

The plain way is written out below, from the study's description: a path of its own for every timestep, one
row at a time beside its unconditional one, gradients of every weight of the U-Net, added up tensor by tensor,
and whole sorts of every row. At the size of Stable Diffusion 1.5 it is three timed calls of each kind times
their number, and ours runs whole in float32; all else runs whole. Times include everything from a name to the
mask.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from apart import apart
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from surgery.anatomy.components import components_of
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import ddim_like, load_pipeline
from surgery.delta import Delta
from surgery.diffusion import encode, load_picture, read_prompts, sample
from surgery.diffusion.pixels import scale_factor
from surgery.diffusion.sampling import latent_shape
from surgery.methods.cad import (
    AttributionSettings,
    CadConcept,
    CadSettings,
    SelectionSettings,
    concepts_named,
    denoising,
    edit,
)
from surgery.methods.cad.attribution import attribute
from surgery.methods.cad.fit import usual_rows
from surgery.methods.cad.gradients import Grading
from surgery.methods.cad.masks import ComponentMask, delta_of
from surgery.methods.cad.nouns import PUBLISHED_TEMPLATES
from surgery.methods.cad.pairs import BATCH, pairs_of
from surgery.methods.cad.ranked import Ranked, rank
from surgery.methods.cad.settings import QUICK, as_json
from surgery.patch import Term, make_patch, save_patch
from surgery.progress import track
from surgery.record import JSON
from surgery.shelf import checkpoint_path
from surgery.study.words import read_words
from tests.support.measure import peak_memory

STEPS: Final = 50  # of the published sampler
PICTURES: Final = 50
PATHS: Final = sum(range(1, STEPS + 1))  # 1,275 calls with guidance
RATIOS: Final = tuple(0.001 * 10 ** (2 * step / 9) for step in range(10))  # 0.1 to 10 %
MOST_FLOOR, MOST_DEFAULT = 235_000, 330_000  # bytes of a mask at ratio 0.001
GROWN: Final = SelectionSettings(rule="tensor", left=0.0)
SHORT: Final = 4  # a quarter of the paths, which pass all parts of the way
MINUTES, MEMORY, MEMORY_SPARING, SWEEP = 25.0, 7.0e9, 5.6e9, 1.2

Scored = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Took:
    """Scores of one concept, the mask made of them, and what they took."""

    scores: Scored
    seconds: float
    ranked: Ranked | None = None
    sweep_s: float = 0.0


def cad_speed(options: argparse.Namespace) -> bool:
    """Whole on the small checkpoint, then at full size where that is asked for; whether all held."""
    if options.full and options.vocabulary is None:
        raise SystemExit("--full needs --vocabulary, the folder of CLIP's vocab.json and merges.txt")
    held = pocket(options) if options.small else True
    return full(options) and held if options.full else held


# the small checkpoint


def pocket(options: argparse.Namespace) -> bool:
    """Both ways whole, two seeds each."""
    base = checkpoint_path(options.base)
    models = load_pipeline(base)
    names = components_of(open_checkpoint(base).shapes, ["ff"])
    drawn = sorted(read_words(base).concepts)
    np.random.default_rng(options.seed).shuffle(drawn)
    chosen = drawn[: options.concepts]
    print(f"pocket: {', '.join(chosen)}; {torch.get_num_threads()} threads, fp32, {len(names)} tensors")
    erased = [_erased(options, models, names, name) for name in track(chosen, "erase", unit="concept")]
    plain_s, ours_s, tried_s, grown_s, plain_r, ours_r, quick_s, quick_r = (
        statistics.fmean(column) for column in zip(*erased, strict=True)
    )
    held = told("erase", plain_s, ours_s, 10)
    steadier = ours_r >= plain_r
    print(
        f"erase: Pearson of two seeds {plain_r:.3f} plainly, {ours_r:.3f} ours: "
        f"{'holds' if steadier else 'FAILS'} (no worse)"
    )
    print(f"preset quick: {quick_s:.2f} s, Pearson of two seeds {quick_r:.3f}")
    print(
        f"an edit as recipes have it, its mask tried beside random ones: {tried_s:.1f} s; one whose mask is "
        f"grown until nothing is left of the direction: {grown_s:.1f} s"
    )
    amplified = [
        _amplified(options, models, names, name)
        for name in track(chosen[: options.amplified], "amplify", unit="concept")
    ]
    plain_s, ours_s, r = (statistics.fmean(column) for column in zip(*amplified, strict=True))
    faster = told("amplify", plain_s, ours_s, 50)
    alike = r >= 0.98
    print(f"amplify: Pearson to the 2,500 pairs {r:.4f}: {'holds' if alike else 'FAILS'} (at least 0.98)")
    return held and steadier and faster and alike


def told(what: str, plain_s: float, ours_s: float, least: float) -> bool:
    ratio = plain_s / ours_s
    print(
        f"{what}: {plain_s:.1f} s plainly, {ours_s:.2f} s ours: {ratio:.1f} times "
        f"{'holds' if ratio >= least else 'FAILS'} (at least {least:g})",
        flush=True,
    )
    return ratio >= least


def _erased(options: argparse.Namespace, models: Any, names: tuple[str, ...], name: str) -> tuple[float, ...]:
    """Seconds plainly, ours, with masks tried, and grown; the correlation of two seeds, plainly and ours.

    Last the seconds of the preset ``quick``, and its correlation.
    """
    plain = [plain_erase(models, names, name, seed) for seed in (0, 1)]
    ours, quick = (
        [
            _ours(models, names, concept, settings, options.micro_batch)
            for seed in (0, 1)
            for concept in concepts_named([name], seed=seed)
        ]
        for settings in (AttributionSettings(), QUICK[0])
    )
    return (
        statistics.fmean(one.seconds for one in plain),
        statistics.fmean(one.seconds for one in ours),
        *(_edited(models, names, name, selection) for selection in (SelectionSettings(), GROWN)),
        pearson(plain[0].scores, plain[1].scores),
        pearson(ours[0].scores, ours[1].scores),
        statistics.fmean(one.seconds for one in quick),
        pearson(quick[0].scores, quick[1].scores),
    )


def _edited(models: Any, names: tuple[str, ...], name: str, selection: SelectionSettings) -> float:
    """Seconds of a whole edit, without a store."""
    started = time.perf_counter()
    edit(models, concepts_named([name]), names, CadSettings(selection=selection))
    return time.perf_counter() - started


def _amplified(
    options: argparse.Namespace, models: Any, names: tuple[str, ...], name: str
) -> tuple[float, float, float]:
    """Seconds plainly and ours on the same fifty pictures, and the correlation of their scores."""
    drawn = sample(
        models, [name] * PICTURES, list(range(PICTURES)),
        steps=STEPS, guidance=7.5, batch=25, progress=False,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        paths = tuple(Path(folder) / f"{number}.png" for number in range(PICTURES))
        for path, picture in zip(paths, drawn, strict=True):
            Image.fromarray(picture).save(path)
        (bare,) = concepts_named([name], PUBLISHED_TEMPLATES, seed=1)
        shown = replace(bare, images=paths)
        plain = plain_amplify(models, names, shown, 0)
        settings = denoising(PICTURES)
        print(f"amplify, {name}: {settings.graded_steps * PICTURES} pairs for {STEPS * PICTURES}", flush=True)
        ours = _ours(models, names, shown, settings, options.micro_batch, negative=True)
    return plain.seconds, ours.seconds, pearson(plain.scores, ours.scores)


def pearson(one: Scored, other: Scored) -> float:
    """Of all scores together."""
    first, second = (torch.cat([side[name].flatten() for name in sorted(side)]) for side in (one, other))
    return float(torch.corrcoef(torch.stack([first, second]).double())[0, 1])


def _ours(
    models: Any,
    names: tuple[str, ...],
    concept: CadConcept,
    settings: AttributionSettings,
    micro_batch: int,
    *,
    negative: bool = False,
    batch: int = BATCH,
    checkpointing: bool = False,
    keep: bool = True,
) -> Took:
    """From the name or pictures to the mask, and then nine more masks; ``keep`` keeps the scores."""
    started = time.perf_counter()
    (pairs,) = pairs_of(models, [concept], settings, batch=batch)
    grading = Grading(names=names, micro_batch=micro_batch, checkpointing=checkpointing)
    found = attribute(models, pairs, grading)
    sign = -1.0 if negative else 1.0

    def scores() -> Any:
        return ((one, sign * score) for one, score in found.scores())

    chosen = SelectionSettings()
    ranked = rank(scores, chosen.rule, max(RATIOS))
    mask = ranked.mask(RATIOS[0], chosen.rounding)
    seconds = time.perf_counter() - started
    for ratio in RATIOS[1:]:
        ranked.mask(ratio, chosen.rounding)
    sweep = time.perf_counter() - started
    assert mask.count
    kept = dict(found.scores()) if keep else {}
    return Took(scores=kept, seconds=seconds, ranked=ranked, sweep_s=sweep)


# the published scheme, plainly


def plain_erase(models: Any, names: tuple[str, ...], name: str, seed: int) -> Took:
    """For each of 50 timesteps a path of its own, from new noise up to there; one row and its base each."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    scheduler, text = _ddim(models), _features(models, [name, ""])
    unet, shape = models.unet, (1, *latent_shape(models))
    for weight in unet.parameters():
        weight.requires_grad_(True)
    total = {key: torch.zeros_like(weight) for key, weight in unet.named_parameters()}
    for length in range(1, STEPS + 1):
        latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps[:length]:
            latents = _guided(unet, scheduler, latents, timestep, text, 3.0)
        _add(unet, total, base_gap(unet, latents, scheduler.timesteps[length - 1], text))
    return _scored(unet, total, names, started, sign=1.0)


def plain_amplify(models: Any, names: tuple[str, ...], shown: CadConcept, seed: int) -> Took:
    """The denoising loss of 50 pictures at each of 50 timesteps, one at a time."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    scheduler, text = _ddim(models), _features(models, shown.prompts)
    side = models.unet.config.sample_size * scale_factor(models.vae)
    pixels = torch.stack([load_picture(path, side, side) for path in shown.images])
    latents = torch.cat([encode(models.vae, part)[0] for part in pixels.split(5)])
    unet = models.unet
    for weight in unet.parameters():
        weight.requires_grad_(True)
    total = {key: torch.zeros_like(weight) for key, weight in unet.named_parameters()}
    for timestep in scheduler.timesteps:
        for latent in latents:
            noise = torch.randn((1, *latent.shape), generator=generator)
            noisy = scheduler.add_noise(latent[None], noise, timestep[None])
            _add(unet, total, (noise - unet(noisy, timestep, text).sample).square().mean())
    return _scored(unet, total, names, started, sign=-1.0)


def base_gap(unet: Any, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """The summed squared distance of a conditional prediction to the base one, both rows in the graph."""
    conditional, base = unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
    return torch.as_tensor((base.detach() - conditional).square().sum())


@torch.no_grad()
def _guided(
    unet: Any, scheduler: Any, latents: Tensor, timestep: Tensor, text: Tensor, guidance: float
) -> Tensor:
    conditional, base = unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
    found = base + guidance * (conditional - base)
    return torch.as_tensor(scheduler.step(found, timestep, latents, return_dict=False)[0])


def _add(unet: Any, total: dict[str, Tensor], loss: Tensor) -> None:
    unet.zero_grad(set_to_none=True)
    loss.backward()
    for key, weight in unet.named_parameters():
        if weight.grad is not None:
            total[key] += weight.grad


def _scored(
    unet: Any, total: Mapping[str, Tensor], names: tuple[str, ...], started: float, sign: float
) -> Took:
    """Weight times gradient, and a whole sort of every row."""
    weights = dict(unet.named_parameters())
    scores = {}
    for name in names:
        key = name.removeprefix("unet/")
        scores[name] = sign * weights[key].detach() * total[key]
        scores[name].argsort(dim=1, descending=True)
    unet.zero_grad(set_to_none=True)
    unet.requires_grad_(False)
    return Took(scores=scores, seconds=time.perf_counter() - started)


def _ddim(models: Any) -> Any:
    scheduler = ddim_like(models.scheduler)
    scheduler.set_timesteps(STEPS)
    return scheduler


def _features(models: Any, prompts: Sequence[str]) -> Tensor:
    return read_prompts(models, prompts).features


# full size


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way at full size; one in ``share`` of its paths is walked, which changes no memory."""

    says: str
    settings: AttributionSettings
    dtype: str = "float32"
    sparing: bool = False
    share: int = 1

    @property
    def timed(self) -> bool:
        """Whether it runs whole, which the conditions of time are about."""
        return self.share == 1


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a row takes."""

    seconds: float
    sweep_s: float
    memory: int
    masks: tuple[tuple[str, int, int], ...] = ()


def full(options: argparse.Namespace) -> bool:
    """At SD 1.5's size: ours whole in float32, the plain way from three calls of each kind.

    Each row has a process of its own.
    """
    print(f"\nSD 1.5, {torch.get_num_threads()} threads", flush=True)
    held = True
    for row in rows_of(options):
        cost = apart(cost_of, row, options.vocabulary, options.scratch)
        held = _told_row(row, cost) and held
    apart(extrapolated, options.vocabulary)
    return held


def rows_of(options: argparse.Namespace) -> list[Row]:
    """The rows asked for; but for the first, as long as not all are to be whole, a part of each."""
    quick, usual = QUICK[0], AttributionSettings()
    share = 1 if options.whole else SHORT
    rows = [Row(says="preset quick", settings=quick)]
    if "float32" in options.dtypes:
        rows += [
            Row(says="preset quick, checkpointing", settings=quick, sparing=True, share=share),
            Row(says="defaults", settings=usual, share=share),
        ]
    if "bfloat16" in options.dtypes:
        rows.append(Row(says="preset quick, bfloat16", settings=quick, dtype="bfloat16", share=share))
    return rows


def cost_of(row: Row, vocabulary: Path, scratch: Path) -> Cost:
    """One row, in this process."""
    models = full_models(vocabulary)
    models.unet.to(getattr(torch, row.dtype))
    names = components_of({name: tuple(one.shape) for name, one in _named(models)}, ["ff"])
    settings = replace(row.settings, trajectories=row.settings.trajectories // row.share)
    with peak_memory() as peak:
        (concept,) = concepts_named(["a cat"])
        micro_batch, batch = usual_rows(models)
        took = _ours(
            models, names, concept, settings, micro_batch,
            batch=batch, checkpointing=row.sparing, keep=False,
        )  # fmt: skip
    assert took.ranked is not None
    return Cost(
        seconds=row.share * took.seconds,
        sweep_s=row.share * took.sweep_s,
        memory=peak.count,
        masks=_stored_masks(scratch, took.ranked) if row.timed else (),
    )


def _told_row(row: Row, cost: Cost) -> bool:
    """Prints what it took; whether its conditions hold."""
    small = cost.memory <= (MEMORY_SPARING if row.sparing else MEMORY)
    quick = not row.timed or cost.seconds <= 60 * MINUTES
    print(
        f"{row.says}: {cost.seconds / 60:.1f} minutes"
        f"{f' (extrapolated from one part in {row.share})' if row.share > 1 else ''}"
        f"{'' if quick else f' FAILS (at most {MINUTES:g})'}, {cost.memory / 1e9:.2f} GB "
        f"{'holds' if small else 'FAILS'}",
        flush=True,
    )
    held = small and quick
    if row.timed:
        cheap = cost.sweep_s <= SWEEP * cost.seconds
        print(f"ten ratios: {cost.sweep_s / cost.seconds:.3f} times one {'holds' if cheap else 'FAILS'}")
        held = held and cheap
    for rounding, taken, most in cost.masks:
        print(
            f"mask of ratio 0.001, {rounding}: {taken:,} bytes {'holds' if taken <= most else 'FAILS'} "
            f"(at most {most:,})"
        )
        held = held and taken <= most
    return held


def full_models(vocabulary: Path) -> Any:
    """Random weights; the VAE has none."""
    import randomsd

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return SimpleNamespace(
        unet=randomsd.unet("sd15"),
        text_encoder=randomsd.text_encoder("sd15"),
        tokenizer=randomsd.tokenizer(vocabulary),
        scheduler=scheduler,
        vae=randomsd.vae("sd15"),
    )


def _named(models: Any) -> list[tuple[str, Tensor]]:
    return [(f"unet/{key}", weight) for key, weight in models.unet.named_parameters()]


def extrapolated(vocabulary: Path) -> None:
    """The plain way: three calls of each kind, the median times their number."""
    models = full_models(vocabulary)
    scheduler, text = _ddim(models), _features(models, ["a cat", ""])
    latents, timestep = torch.randn(1, *latent_shape(models)), scheduler.timesteps[10]
    models.unet.requires_grad_(True)

    def backward(loss: Callable[[], Tensor]) -> float:
        def call() -> None:
            loss().backward()
            models.unet.zero_grad(set_to_none=True)

        return _median(call)

    walked = _median(lambda: _guided(models.unet, scheduler, latents, timestep, text, 3.0))
    graded = backward(lambda: base_gap(models.unet, latents, timestep, text))
    denoised = backward(lambda: (latents - models.unet(latents, timestep, text[:1]).sample).square().mean())
    erase = PATHS * walked + STEPS * graded
    amplify = STEPS * PICTURES * denoised  # of pictures that are there
    print(
        f"plainly, extrapolated: a step of a path {walked:.1f} s, graded {graded:.1f} s, denoising "
        f"{denoised:.1f} s: erase {erase / 3600:.1f} hours, amplify {amplify / 3600:.1f} hours",
        flush=True,
    )


def _median(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _remembered() -> dict[str, JSON]:
    """What a patch of a recipe remembers, about as long."""
    recipe = Path(__file__).parents[2] / "recipes/erase/components.yaml"
    made: list[JSON] = [as_json(one) for one in (AttributionSettings(), SelectionSettings())]
    return {"recipe": recipe.read_text(), "made": made}


def _stored_masks(scratch: Path, ranked: Ranked) -> tuple[tuple[str, int, int], ...]:
    """Of both masks of ratio 0.001 as patches: rounding, bytes, and how many may be."""
    from fullsize import SIZES, VOCABULARY, shapes_of, write_random

    from surgery.checkpoint.families import family_files

    size = SIZES["sd15-fp16"]
    scratch.mkdir(parents=True, exist_ok=True)
    base, place = scratch / "mask-base.safetensors", scratch / "mask.safetensors"
    try:
        files = family_files(size.family, VOCABULARY)
        write_random(base, shapes_of(files), files, size.dtype)
        checkpoint = open_checkpoint(base)
        found = []
        for rounding, most in (("floor", MOST_FLOOR), ("carry", MOST_DEFAULT)):
            mask: ComponentMask = ranked.mask(0.001, rounding)  # type: ignore[arg-type]  # one of two words
            delta: Delta = delta_of([(mask, 1.0)])
            patch = make_patch([Term(delta=delta, source="bench")], checkpoint, _remembered())
            save_patch(patch, place, overwrite=True)
            found.append((rounding, place.stat().st_size, most))
        return tuple(found)
    finally:
        for path in (base, place):
            path.unlink(missing_ok=True)
