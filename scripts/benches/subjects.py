"""Two things in one picture: guidance by a prompt's subjects beside plain guidance and Composable Diffusion.

The pairs that judge are those that the checkpoint's training never showed together; every way draws from the
same seeds, and the judge says in how many pictures it sees both, and in how many something else that nobody
asked for: clutter would show as both. Each way's scales (of the guidance, and of the subjects beside it) are
chosen beforehand on other pairs and another template; the two releases are also taken as published.
Differences to plain guidance come from pictures in pairs, with intervals over pairs of things.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from cells import kept
from fontdrawn import vocabulary_of
from torch import Tensor

from surgery.anatomy import weights_digest
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import Models, PromptGuide, derived_seed, read_prompts, sample
from surgery.diffusion.algebra import guided
from surgery.diffusion.conditions import read_without
from surgery.diffusion.guide import Guide
from surgery.evaluate.statistics import difference, share
from surgery.guidance.branches import Branch, BranchExecutor
from surgery.guidance.concept_diffusion import INITIAL, LATER, OURS
from surgery.guidance.guides import ConceptGuide
from surgery.judge import Judge, Trait, load_judge
from surgery.record import JSON, json_digest
from surgery.shelf import checkpoint_path
from surgery.study.samples import sheet_of, write_sheet

Pair = tuple[str, str]
Bools = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

TEMPLATES: Final = ("this image shows {}", "a simple picture of {}")
CHOOSING: Final = "a drawing of {}"
GUIDANCES: Final = (2.5, 5.0, 7.5)
WEIGHTS: Final = (0.5, 1.5, 5.0)
PRESETS: Final = {"initial": INITIAL, "later": LATER, "ours": OURS}
VERSION: Final = 3  # goes up when cells are made otherwise


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a way guides models, given the subjects of each prompt and the prompts; its settings, for keys.

    ``rows`` are those of the U-Net for a picture and step.
    """

    guide: Callable[[Models, Mapping[str, Sequence[str]], Sequence[str]], Guide]
    settings: Any
    rows: int


@dataclass(frozen=True, kw_only=True)
class ComposableGuide:
    """e₀ + Σ w (e(cᵢ) - e₀), a branch for each subject and none for the prompt (Liu et al. 2022, eq. 11)."""

    models: Models
    subjects: Mapping[str, Sequence[str]]
    guidance: float

    def begin(self, prompts: Sequence[str], latents: Tensor, steps: int) -> Callable[[Tensor, Any], Tensor]:
        without = read_without(self.models, "").to(latents).repeated(len(prompts))
        columns = zip(*(self.subjects[prompt] for prompt in prompts), strict=True)
        texts = [without, *(read_prompts(self.models, list(column)).to(latents) for column in columns)]
        branches, executor = [Branch(text=text) for text in texts], BranchExecutor(models=self.models)

        def predict(noisy: Tensor, timestep: Any) -> Tensor:
            base, *found = executor.predict(noisy, timestep, branches)
            return guided(base, [(self.guidance, one) for one in found])

        return predict


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells share."""

    options: argparse.Namespace
    models: Any
    judge: Judge

    def seen(self, name: str, way: Way, subjects: Mapping[str, Pair], samples: int) -> Bools:
        """Whether each picture shows both, and whether anything else, prompt by prompt; kept in a file."""
        options = self.options
        prompts = [prompt for prompt in subjects for _ in range(samples)]
        asked: JSON = [
            [weights_digest(self.models.unet), weights_digest(self.models.text_encoder), self.judge.name],
            [options.seed, options.steps, samples, VERSION],
            [name, repr(way.settings), *subjects],
        ]
        place = options.out / f"{name.replace(' ', '-')}-{json_digest(asked)[:12]}.json"

        def made() -> Mapping[str, Any]:
            seeds = [derived_seed(options.seed, prompt, row % samples) for row, prompt in enumerate(prompts)]
            guide = way.guide(self.models, subjects, prompts)
            drawn = sample(self.models, prompts, seeds, steps=options.steps, batch=24, guide=guide)
            seen = self.judge.score(drawn)
            shown = np.stack([seen.shows(Trait(one)) for one in self.judge.labels.of("concept")])
            both, more = [], []
            for row, prompt in enumerate(prompts):
                asked_for = [self.judge.labels.column(Trait(one)) for one in subjects[prompt]]
                both.append(bool(shown[asked_for, row].all()))
                more.append(bool(np.delete(shown[:, row], asked_for).any()))
            return {"both": both, "else": more}

        cell = kept(place, made)
        return np.array(cell["both"]), np.array(cell["else"])

    def choose(self, ways: Mapping[str, Mapping[str, Way]], pairs: Sequence[Pair]) -> dict[str, Way]:
        """Of each way's scales the one with which most pictures show both."""
        subjects = subjects_of(pairs, [CHOOSING])
        print(f"choosing on {len(subjects)} prompts of other pairs, one picture each")
        chosen: dict[str, Way] = {}
        for name, scaled in ways.items():
            if len(scaled) == 1:  # as published
                chosen |= {f"{name}, {scale}": way for scale, way in scaled.items()}
                continue
            found = {
                scale: float(self.seen(name, way, subjects, 1)[0].mean()) for scale, way in scaled.items()
            }
            best = max(found, key=lambda scale: found[scale])
            print(f"{name:22} {', '.join(f'{scale}: {100 * one:.0f} %' for scale, one in found.items())}")
            chosen[f"{name}, {best}"] = scaled[best]
        return chosen

    def judge_them(self, ways: Mapping[str, Way], pairs: Sequence[Pair]) -> None:
        """Prints the share with both and its difference to the first way's, and the share with more."""
        samples = self.options.samples
        subjects = subjects_of(pairs, TEMPLATES)
        print(f"\n{len(subjects)} prompts of pairs never drawn together, {samples} pictures each")
        groups = np.repeat(np.arange(len(subjects)) % len(pairs), samples)  # a pair stands in all templates
        found = {name: self.seen(name, way, subjects, samples) for name, way in ways.items()}
        first, _ = next(iter(found.values()))
        for name, (both, more) in found.items():
            score, gain = share(name, both, groups), difference(name, first, both, groups)
            print(
                f"{name:36} both {100 * score.value:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}], "
                f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] against the first; "
                f"something else {100 * more.mean():.0f} %; {ways[name].rows} rows a step",
                flush=True,
            )

    def draw_sheet(self, ways: Mapping[str, Way], pairs: Sequence[Pair], path: Path) -> None:
        subjects = subjects_of(pairs[:6], TEMPLATES[:1])
        shown, columns = list(subjects), (0, 1, 2)
        rows = [prompt for prompt in shown for _ in columns]
        tables = {}
        for name, way in ways.items():
            guide = way.guide(self.models, subjects, rows)
            seeds, steps = list(columns) * len(shown), self.options.steps
            drawn = sample(self.models, rows, seeds, steps=steps, batch=24, guide=guide)
            tables[name] = drawn.reshape(len(shown), len(columns), *drawn.shape[1:])
        write_sheet(sheet_of(tables, shown, columns), path, overwrite=True)
        print(f"sheet: {path}")


def two_subjects(options: argparse.Namespace) -> None:
    """Prints the share of pictures with both, by way, and its difference to plain guidance."""
    base = checkpoint_path(options.base)
    bench = Bench(options=options, models=load_pipeline(base), judge=load_judge("pocket-judge"))
    unknown = bench.judge.labels.fault
    pairs = [pair for pair in held_out(base) if all(unknown(Trait(name)) is None for name in pair)]
    ways = bench.choose(_ways(options.steps), _others(pairs, options.choosing, options.seed))
    bench.judge_them(ways, pairs)
    if options.sheet is not None:
        bench.draw_sheet(ways, pairs, options.sheet)


def subjects_of(pairs: Sequence[Pair], templates: Sequence[str]) -> dict[str, Pair]:
    """The prompts and their subjects."""
    return {
        template.format(f"{first} and {second}"): (first, second)
        for template in templates
        for first, second in pairs
    }


def _others(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """So many pairs of the same names that are not among these."""
    names = sorted({name for pair in pairs for name in pair})
    taken, generator = {frozenset(pair) for pair in pairs}, np.random.default_rng(seed)
    found: dict[frozenset[str], Pair] = {}
    while len(found) < count:
        first, second = (names[place] for place in generator.choice(len(names), 2, replace=False))
        if frozenset((first, second)) not in taken:
            found[frozenset((first, second))] = (first, second)
    return list(found.values())


def _ways(steps: int) -> dict[str, dict[str, Way]]:
    """Every way with each of its scales, by what is scaled."""

    def plain(guidance: float) -> Way:
        return Way(
            settings=guidance,
            guide=lambda models, _, prompts: PromptGuide(models, prompts, guidance),
            rows=2,
        )

    def composable(guidance: float) -> Way:
        return Way(
            settings=guidance,
            guide=lambda models, subjects, _: ComposableGuide(
                models=models, subjects=subjects, guidance=guidance
            ),
            rows=3,
        )

    def by_subjects(settings: Any, **scales: float) -> Way:
        own = replace(
            settings,
            **scales,
            first_step=round(settings.first_step * steps / 50),
            last_step=None if settings.last_step is None else round(settings.last_step * steps / 50),
        )
        return Way(
            settings=own,
            guide=lambda models, subjects, _: ConceptGuide(models=models, subjects=subjects, settings=own),
            rows=4,
        )

    return {
        "plain": {f"guidance {one:g}": plain(one) for one in GUIDANCES},
        "composable": {f"guidance {one:g}": composable(one) for one in GUIDANCES},
        **{f"subjects, {one}": {"as published": by_subjects(PRESETS[one])} for one in ("initial", "later")},
        **{
            f"subjects, {name}, chosen": {
                f"guidance {guidance:g}, weight {weight:g}": by_subjects(
                    settings, guidance=guidance, weight=weight
                )
                for guidance, weight in product(GUIDANCES, WEIGHTS)
            }
            for name, settings in PRESETS.items()
        },
    }


def held_out(base: Path) -> list[Pair]:
    """Pairs of names that were never drawn together, as the training chose them."""
    from unet import held_out_pairs

    pairs = held_out_pairs(vocabulary_of(base))
    return sorted(tuple(sorted(pair)) for pair in pairs)  # type: ignore[misc]  # two names each
