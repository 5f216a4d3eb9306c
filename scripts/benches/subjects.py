"""Two things in one picture: guidance by a prompt's subjects beside plain guidance and Composable Diffusion.

The pairs are those that the checkpoint's training never showed together; every way draws from the same seeds,
and the judge says in how many pictures it sees both. Differences to plain guidance come from pictures in
pairs, with intervals over prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cells import kept
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
from surgery.judge import Trait, load_judge
from surgery.record import JSON, json_digest
from surgery.shelf import checkpoint_path
from surgery.study.samples import sheet_of, write_sheet

TEMPLATES: Final = ("this image shows {}", "a simple picture of {}")
VERSION: Final = 1  # goes up when cells are made otherwise


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a way guides models, given the subjects of each prompt and the prompts; its settings, for keys."""

    guide: Callable[[Models, Mapping[str, Sequence[str]], Sequence[str]], Guide]
    settings: Any = None


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


def two_subjects(options: argparse.Namespace) -> None:
    """Prints the share of pictures with both, by way, and its difference to plain guidance."""
    base = checkpoint_path(options.base)
    models, judge = load_pipeline(base), load_judge("pocket-judge")
    pairs = [pair for pair in held_out(base) if all(judge.labels.fault(Trait(name)) is None for name in pair)]
    subjects = {
        template.format(f"{first} and {second}"): (first, second)
        for template in TEMPLATES
        for first, second in pairs
    }
    prompts = [prompt for prompt in subjects for _ in range(options.samples)]
    seeds = [derived_seed(options.seed, prompt, row % options.samples) for row, prompt in enumerate(prompts)]
    # a pair stands in several templates
    groups = np.repeat(np.arange(len(subjects)) % len(pairs), options.samples)
    print(f"{len(subjects)} prompts of pairs never drawn together, {options.samples} pictures each")
    ways = _ways(options.guidance, options.steps)
    found = {}
    for name, way in ways.items():
        asked: JSON = [
            [weights_digest(models.unet), options.seed, options.steps, options.guidance, VERSION],
            [name, repr(way.settings), options.samples, *subjects],
            [weights_digest(models.text_encoder), judge.name],
        ]
        place = options.out / f"{name.replace(' ', '-')}-{json_digest(asked)[:12]}.json"

        def made(way: Way = way) -> Mapping[str, Any]:
            guide = way.guide(models, subjects, prompts)
            seen = judge.score(sample(models, prompts, seeds, steps=options.steps, batch=24, guide=guide))
            shown = [
                [bool(seen.shows(Trait(name))[row]) for name in subjects[prompt]]
                for row, prompt in enumerate(prompts)
            ]
            return {"shown": shown}

        found[name] = np.array([all(one) for one in kept(place, made)["shown"]])
        score = share(name, found[name], groups)
        gain = difference(name, found["plain"], found[name], groups)
        print(
            f"{name:22} both {100 * score.value:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}], "
            f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] against plain",
            flush=True,
        )
    if options.sheet is not None:
        shown = list(subjects)[:6]
        columns = (0, 1, 2)
        rows = [prompt for prompt in shown for _ in columns]
        tables = {}
        for name, way in ways.items():
            drawn = sample(
                models, rows, list(columns) * len(shown), steps=options.steps, batch=24,
                guide=way.guide(models, subjects, rows),
            )  # fmt: skip
            tables[name] = drawn.reshape(len(shown), len(columns), *drawn.shape[1:])
        write_sheet(sheet_of(tables, shown, columns), options.sheet, overwrite=True)
        print(f"sheet: {options.sheet}")


def _ways(guidance: float, steps: int) -> dict[str, Way]:
    def by_subjects(settings: Any) -> Way:
        last = None if settings.last_step is None else round(settings.last_step * steps / 50)
        own = replace(
            settings,
            guidance=guidance,
            weight=settings.weight * guidance / settings.guidance,
            first_step=round(settings.first_step * steps / 50),
            last_step=last,
        )
        return Way(
            settings=own,
            guide=lambda models, subjects, _: ConceptGuide(models=models, subjects=subjects, settings=own),
        )

    return {
        "plain": Way(guide=lambda models, _, prompts: PromptGuide(models, prompts, guidance)),
        "composable": Way(
            guide=lambda models, subjects, _: ComposableGuide(
                models=models, subjects=subjects, guidance=guidance
            )
        ),
        "subjects, published": by_subjects(INITIAL),
        "subjects, later": by_subjects(LATER),
        "subjects, ours": by_subjects(OURS),
    }


def held_out(base: Path) -> list[tuple[str, str]]:
    """Pairs of names that were never drawn together, as the training chose them."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "pocket"))
    from unet import held_out_pairs
    from vocabulary import read_vocabulary

    pairs = held_out_pairs(read_vocabulary(base / "concepts.json"))
    return sorted(tuple(sorted(pair)) for pair in pairs)  # type: ignore[misc]  # two names each
