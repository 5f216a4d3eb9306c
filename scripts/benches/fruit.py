"""A look learned from pictures alone, of things that the checkpoint never saw: how well it is drawn and led.

Fruit is drawn by the font that the checkpoint's own pictures came from, and learned without a word. Weights,
strength in the base branch and rank are chosen on some control prompts; other templates and seeds judge (the
backgrounds and styles are the same: there are no more). Beside it stand ordinary fine-tuning (the same
pictures, rank and number of updates with the caption "", factors beside cross-attention as well, and ordinary
guidance with the tuned weights), and the untouched checkpoint, which shows what the judge takes for fruit
where none was learned. Intervals are over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cells import kept
from fontdrawn import font_pictures, never_seen

from surgery.anatomy import weights_digest
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import derived_seed, noise_schedule, predict_under, sample, sample_latents
from surgery.diffusion.conditions import read_without
from surgery.diffusion.guide import PassingGuide
from surgery.evaluate.statistics import share as share_of
from surgery.guidance.gcfg import GcfgSettings, GuidedConcept
from surgery.guidance.guides import GcfgGuide
from surgery.judge import Judge, Trait, load_judge
from surgery.judge.labels import Axis
from surgery.methods.null_text import TrainSettings, read_pictures
from surgery.methods.null_text.door import layers_of
from surgery.methods.null_text.objective import LookObjective
from surgery.methods.null_text.pictures import split_off
from surgery.methods.null_text.settings import as_json
from surgery.methods.training import Task, delta_of, factors_of, run_updates
from surgery.patch import Patch, Term, applied, load_patch, make_patch, patch_digest, save_patch
from surgery.record import JSON, json_digest
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.look import train_look
from surgery.study.samples import sheet_of, write_sheet
from surgery.study.words import read_words

Pictures = np.ndarray[Any, Any]
AXES: Final[Sequence[Axis]] = ("background", "style")
CHOOSING: Final = ("on a {} background", "a picture on a {} background")
JUDGING: Final = ("against a {} background", "an image with {} background")
STYLES_CHOOSING: Final = ("a {}", "a picture, {}")
STYLES_JUDGING: Final = ("an image in the style of {}", "{} style picture")
WEIGHTS: Final = (1.5, 2.5, 4.0)
CONTROLS: Final = (2.5, 4.0, 6.0)
UNCONDITIONAL: Final = (1.0, 1.5, 2.0, 2.5, 3.0)
GUIDANCES: Final = (1.5, 2.5, 4.0, 6.0, 9.0)
BASE_STRENGTHS: Final = (0.0, 0.3)
LEVELS: Final = 10
_WORDS: Final = ("domain", "obeyed", "both")
VERSION: Final = 1  # goes up when cells are made otherwise


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A control prompt and the judge's trait that obeys it."""

    prompt: str
    axis: Axis | None = None
    value: str = ""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the judge saw in each picture: whether it is of the domain, and whether it obeys."""

    domain: Sequence[bool]
    obeyed: Sequence[bool]

    @property
    def both(self) -> float:
        return float(np.mean(np.array(self.domain) & np.array(self.obeyed)))


def look(options: argparse.Namespace) -> bool:
    """Trains where that was not done yet, chooses, judges, prints; whether the conditions held."""
    base = checkpoint_path(options.base)
    models, judge = load_pipeline(base), load_judge("pocket-judge")
    folder = fruit_pictures(options)
    patches = {f"rank {rank}": _learned(options, base, folder, rank) for rank in options.ranks}
    bench = Bench(options=options, models=models, judge=judge, patches=patches)
    chosen = bench.choose()
    rank = int(chosen[0].removeprefix("rank "))
    patches["ordinary"] = _ordinary(options, base, models, folder, rank)
    guidance = bench.choose_ordinary()
    held = bench.judge_it(chosen, guidance)
    bench.drift(folder, chosen, guidance)
    return held


# pictures and training


def fruit_pictures(options: argparse.Namespace) -> Path:
    """One fruit in each picture, on backgrounds drawn evenly; made once."""
    base = checkpoint_path(options.base)
    folder: Path = options.work / f"fruit-{options.pictures}-{options.seed}"
    font_pictures(base, never_seen(base), options.pictures, options.seed, folder)
    return folder


def _settings(options: argparse.Namespace, rank: int) -> TrainSettings:
    return TrainSettings(
        rank=rank,
        steps=options.steps,
        batch=16,
        micro_batch=16,
        learning_rate=options.learning_rate,
        check_every=max(1, options.steps // 10),
        patience=10,
        seed=options.seed,
    )


def _learned(options: argparse.Namespace, base: Path, folder: Path, rank: int) -> Patch:
    """The patch of a rank; trained, or gone on with, where it is missing."""
    place = options.work / f"rank-{rank}-{_digest(options, base, _settings(options, rank))}.safetensors"
    if not place.is_file():
        found = train_look(base, folder, place, _settings(options, rank))
        print(f"rank {rank}: {next(found.lines())}", flush=True)
    return load_patch(place)


def _ordinary(options: argparse.Namespace, base: Path, models: Any, folder: Path, rank: int) -> Patch:
    """Factors beside all layers, cross-attention included, trained with the caption ""."""
    settings = _settings(options, rank)
    digest = _digest(options, base, settings)
    place = options.work / f"ordinary-{rank}-{digest}.safetensors"
    if not place.is_file():
        store = Store(options.work / "ordinary")
        pictures = read_pictures(models, folder, store=store)
        attention = [f"unet/{path}" for path, _ in models.unet.named_parameters() if _crosses(path)]
        names = [*layers_of(models.unet, "all"), *attention]
        meaning: dict[str, JSON] = {"what": "ordinary", "digest": digest}
        with factors_of(models, names, settings.rank, settings.seed) as leaves:
            objective = LookObjective(models, pictures, settings)
            task = Task(models=models, leaves=leaves, settings=settings, store=store, meaning=meaning)
            state = run_updates(task, objective)
        delta = delta_of(models, state.best_values or state.averages)
        patch = make_patch([Term(delta=delta, source="ordinary")], open_checkpoint(base), {})
        save_patch(patch, place)
    return load_patch(place)


def _digest(options: argparse.Namespace, base: Path, settings: TrainSettings) -> str:
    """What decides a training."""
    roots = open_checkpoint(base).fingerprint().roots
    told: JSON = [
        {name: root.bytes for name, root in roots.items()},
        [options.pictures, options.seed],
        as_json(settings),
    ]
    return json_digest(told)[:12]


def _crosses(path: str) -> bool:
    return ".attn2.to_" in path and path.endswith(".weight")


# choosing and judging


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells share."""

    options: argparse.Namespace
    models: Any
    judge: Judge
    patches: Mapping[str, Patch]

    def choose(self) -> tuple[str, float, float, float]:
        """The best rank, w_K, w_C and σ_u by the share of pictures of the domain that obey."""
        asks = [*self._asks(CHOOSING, STYLES_CHOOSING)]
        print(f"\nchoosing on {len(asks)} prompts, {self.options.samples} pictures each")
        told = {}
        names = [name for name in self.patches if name != "ordinary"]
        first = names[len(names) // 2]
        for w_k, w_c, sigma in product(WEIGHTS, CONTROLS, BASE_STRENGTHS):
            told[first, w_k, w_c, sigma] = self._cell(first, w_k, w_c, sigma, asks, "choosing")
        _, w_k, w_c, sigma = max(told, key=lambda key: told[key].both)
        for name in names:
            told[name, w_k, w_c, sigma] = self._cell(name, w_k, w_c, sigma, asks, "choosing")
        for (name, w_k, w_c, sigma), seen in told.items():
            print(
                f"{name:9} w_K {w_k:g} w_C {w_c:g} σ_u {sigma:g}: domain {_spelled(seen.domain)}, obeyed "
                f"{_spelled(seen.obeyed)}, both {100 * seen.both:.0f} %",
                flush=True,
            )
        return max(told, key=lambda key: told[key].both)

    def choose_ordinary(self) -> float:
        """The guidance with which ordinary fine-tuning does best on the same prompts."""
        asks = [*self._asks(CHOOSING, STYLES_CHOOSING)]
        told = {one: self._cell("ordinary", one, one, 1.0, asks, "choosing") for one in GUIDANCES}
        for guidance, seen in told.items():
            print(
                f"ordinary, guidance {guidance:g}: domain {_spelled(seen.domain)}, obeyed "
                f"{_spelled(seen.obeyed)}, both {100 * seen.both:.0f} %",
                flush=True,
            )
        return max(told, key=lambda one: told[one].both)

    def _alone(self, name: str) -> float:
        """The w_K with which a patch does best without words."""
        told = {}
        for weight in UNCONDITIONAL:
            seen = self._cell(name, weight, 0.0, 0.0, [Ask(prompt="")] * 8, "choosing")
            told[weight] = float(np.mean(seen.domain))
            print(f"without words, {name:9} w_K {weight:g}: domain {_spelled(seen.domain)}", flush=True)
        return max(told, key=lambda weight: told[weight])

    def judge_it(self, chosen: tuple[str, float, float, float], guidance: float) -> bool:
        """The chosen settings on other prompts, beside ordinary fine-tuning; the two conditions."""
        name, w_k, w_c, sigma = chosen
        weight = self._alone(name)
        unasked = [Ask(prompt="")] * 25
        alone = self._cell(name, weight, 0.0, 0.0, unasked, "judging")
        unled = self._cell(name, 1.0, 0.0, 0.0, unasked, "judging")
        asks = [*self._asks(JUDGING, STYLES_JUDGING)]
        print(f"\njudging on {len(asks)} other prompts: {name}, w_K {w_k:g}, w_C {w_c:g}, σ_u {sigma:g}")
        found = self._cell(name, w_k, w_c, sigma, asks, "judging")
        print(f"concept alone, w_K {weight:g}: domain {_spelled(alone.domain)}")
        print(f"concept alone, w_K 1, which is no guidance: domain {_spelled(unled.domain)}")
        for other, what in (("ordinary", "ordinary fine-tuning"), ("base", "untouched checkpoint")):
            seen = self._cell(other, 0.0, 0.0, 1.0, unasked, "judging")
            print(f"{what} without words: domain {_spelled(seen.domain)}")
        self._told("with prompts", found, asks)
        plain = self._cell("ordinary", guidance, guidance, 1.0, asks, "judging")
        self._told(f"ordinary fine-tuning, guidance {guidance:g}", plain, asks)
        base = self._cell("base", w_c, w_c, 1.0, asks, "judging")
        self._told(f"untouched checkpoint, guidance {w_c:g}", base, asks)
        self._sheets(chosen, weight, guidance, asks)
        domain = float(np.mean(alone.domain))
        held = domain >= 0.9, found.both >= 0.8
        print(
            f"domain {'holds' if held[0] else 'FAILS'} (at least 90 %), control with domain "
            f"{'holds' if held[1] else 'FAILS'} (at least 80 %)"
        )
        return all(held)

    def _told(self, what: str, seen: Seen, asks: Sequence[Ask]) -> None:
        """Shares of all prompts and of those of each kind; pictures of one prompt are one group."""
        rows = self._rows(asks)
        groups = np.repeat(np.arange(len(asks)), self.options.samples)
        for axis in (None, *AXES):
            mine = np.array([axis is None or ask.axis == axis for ask in rows])
            domain, obeyed = (np.array(one)[mine] for one in (seen.domain, seen.obeyed))
            shares = (_spelled(one, groups[mine]) for one in (domain, obeyed, domain & obeyed))
            told = ", ".join(f"{word} {share}" for word, share in zip(_WORDS, shares, strict=True))
            print(f"{what if axis is None else f'  {axis}'}: {told}", flush=True)

    def _asks(self, backgrounds: Sequence[str], styles: Sequence[str]) -> Iterator[Ask]:
        for template, value in product(backgrounds, self.judge.labels.of("background")):
            yield Ask(prompt=template.format(value), axis="background", value=value)
        words = json.loads((checkpoint_path(self.options.base) / "concepts.json").read_text(encoding="utf-8"))
        for template, value in product(styles, words["styles"]):
            yield Ask(prompt=template.format(value), axis="style", value=value)

    def _rows(self, asks: Sequence[Ask]) -> list[Ask]:
        return [ask for ask in asks for _ in range(self.options.samples)]

    def _guide(self, name: str, w_k: float, w_c: float, sigma: float) -> GcfgGuide:
        if name == "base":
            return GcfgGuide(self.models, [], GcfgSettings(concepts=(), control_weight=w_c))
        if name == "ordinary":  # guidance with the tuned weights in both branches
            one = GuidedConcept(weight=0.0, base_strength=1.0, control_strength=1.0)
        else:
            one = GuidedConcept(weight=w_k, base_strength=sigma)
        settings = GcfgSettings(concepts=(one,), control_weight=w_c)
        return GcfgGuide(self.models, [self.patches[name]], settings)

    def _cell(
        self, name: str, w_k: float, w_c: float, sigma: float, asks: Sequence[Ask], purpose: str
    ) -> Seen:
        options = self.options
        asked: JSON = [
            [
                patch_digest(self.patches[name])
                if name in self.patches
                else weights_digest(self.models.unet),
                weights_digest(self.models.text_encoder),
                self.judge.name,
            ],
            [options.samples, options.sampling_steps, options.seed, VERSION],
            [name, w_k, w_c, sigma, purpose],
            [[ask.prompt, ask.value] for ask in asks],
        ]
        place = options.out / f"{name.replace(' ', '-')}-{json_digest(asked)[:12]}.json"
        rows = self._rows(asks)

        def made() -> Mapping[str, Any]:
            guide = self._guide(name, w_k, w_c, sigma)
            seeds = [derived_seed(options.seed, purpose, number) for number in range(len(rows))]
            pictures = self._drawn([ask.prompt for ask in rows], seeds, guide)
            return asdict(self._seen(pictures, rows))

        return Seen(**kept(place, made))

    def _drawn(self, prompts: Sequence[str], seeds: Sequence[int], guide: GcfgGuide) -> Pictures:
        steps = self.options.sampling_steps
        return sample(self.models, prompts, seeds, steps=steps, batch=24, guide=guide, progress=False)

    def _seen(self, pictures: Pictures, rows: Sequence[Ask]) -> Seen:
        verdicts = self.judge.score(pictures)
        fruit = np.any([verdicts.shows(Trait(name)) for name in self._fruit()], axis=0)
        likeliest = {axis: verdicts.likeliest(axis) for axis in AXES}
        obeyed = [ask.axis is None or likeliest[ask.axis][row] == ask.value for row, ask in enumerate(rows)]
        return Seen(domain=[bool(one) for one in fruit], obeyed=obeyed)

    def _fruit(self) -> list[str]:
        words = json.loads((checkpoint_path(self.options.base) / "concepts.json").read_text(encoding="utf-8"))
        group = words["left_out_subgroup"]
        return [one["name"] for one in words["concepts"] if one["subgroup"] == group]

    def _sheets(
        self, chosen: tuple[str, float, float, float], weight: float, guidance: float, asks: Sequence[Ask]
    ) -> None:
        name, w_k, w_c, sigma = chosen
        shown = [asks[place].prompt for place in range(0, len(asks), max(1, len(asks) // 8))]
        columns = (0, 1, 2, 3)
        prompts = [prompt for prompt in shown for _ in columns]
        seeds = list(columns) * len(shown)
        tables = {}
        for heading, guide in (
            (f"{name}, w_K {w_k:g}, w_C {w_c:g}", self._guide(name, w_k, w_c, sigma)),
            (f"without words, w_K {weight:g}", self._guide(name, weight, 0.0, 0.0)),
            (f"ordinary, guidance {guidance:g}", self._guide("ordinary", guidance, guidance, 1.0)),
        ):
            drawn = self._drawn(prompts, seeds, guide)
            tables[heading] = drawn.reshape(len(shown), len(columns), *drawn.shape[1:])
        place = self.options.work / "look.png"
        write_sheet(sheet_of(tables, shown, columns), place, overwrite=True)
        print(f"sheet: {place}")

    # drift

    @torch.no_grad()
    def drift(self, folder: Path, chosen: tuple[str, float, float, float], guidance: float) -> None:
        """D₀ = E‖e₀' - e₀‖² / E‖e₀‖² at ten timesteps, and what guidance makes of it (1.2 of the study).

        On noised pictures of others, on noised ones of the domain that were not trained on, and on the paths
        that the chosen settings take.
        """
        models = self.models
        schedule = noise_schedule(models.scheduler)
        steps = schedule.spread(LEVELS)
        domain = read_pictures(models, folder, store=Store(self.options.work / "ordinary"))
        _, held_out = split_off(domain, _settings(self.options, 1).held_out)
        points = {"on its paths": self._passed(chosen)}
        for what, clean in (("held-out fruit", domain.mean[held_out][:32]), ("generic", self._generic())):
            generator = torch.Generator().manual_seed(self.options.seed)
            noise = [torch.randn(clean.shape, generator=generator) for _ in steps]
            points[what] = [
                (step, schedule.noisy(clean, one, torch.full((len(clean),), step)))
                for step, one in zip(steps, noise, strict=True)
            ]
        name, w_k, w_c, sigma = chosen
        sums = {name: w_k + w_c, "ordinary": guidance}
        print("\ndrift without words: mean over ten timesteps, and times (1 - Σw)² where e₀' is guided from")
        text = read_without(models, "")
        for what, some in points.items():
            readings = [(step, noisy, text.repeated(len(noisy))) for step, noisy in some]
            before = [predict_under(models, noisy, step, null) for step, noisy, null in readings]
            for one, total in sums.items():
                with applied(models, self.patches[one]):
                    after = [predict_under(models, noisy, step, null) for step, noisy, null in readings]
                shares = [
                    float((new - old).square().sum() / old.square().sum())
                    for new, old in zip(after, before, strict=True)
                ]
                drifted = float(np.mean(shares))
                print(f"{what:14} {one:9} {drifted:.4f}, {(1 - total) ** 2 * drifted:.3f}", flush=True)
        taken = "the untouched base, 0 by construction" if not sigma else f"{name} at strength {sigma:g}"
        print(f"the chosen guidance is led from {taken}")

    def _passed(self, chosen: tuple[str, float, float, float]) -> list[tuple[int, torch.Tensor]]:
        """Timestep and latents at ten steps of the paths to 32 pictures under prompts that judge."""
        asks = list(self._asks(JUDGING, STYLES_JUDGING))
        prompts = [asks[place * len(asks) // 32].prompt for place in range(32)]
        passing = PassingGuide(self._guide(*chosen), range(LEVELS))
        sample_latents(
            self.models, prompts, list(range(32)), steps=LEVELS, batch=32, guide=passing, progress=False
        )
        return [(int(when[0]), noisy) for when, noisy in zip(passing.timesteps, passing.noisy, strict=True)]

    def _generic(self) -> torch.Tensor:
        """Latents that the untouched checkpoint draws of its own names."""
        names = sorted(read_words(checkpoint_path(self.options.base)).concepts)[::7][:32]
        prompts = [f"a photo of {name}" for name in names]
        found: torch.Tensor = sample_latents(
            self.models, prompts, list(range(len(prompts))), steps=20, progress=False
        )
        return found


def _spelled(hits: Any, groups: np.ndarray[Any, Any] | None = None) -> str:
    score = share_of("", np.array(hits, bool), groups)
    return f"{100 * score.value:.0f} % [{100 * score.low:.0f}, {100 * score.high:.0f}]"
