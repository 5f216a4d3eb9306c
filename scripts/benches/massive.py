"""Many concepts at once: update and forget, both residuals, all modes, on the same prompts and seeds."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.evaluate import EditEffect
from surgery.execute import compute_patch, plan_recipe
from surgery.judge import Judge, load_judge
from surgery.recipe import Recipe, parse_recipe
from surgery.record import Score
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.effect import measure_replacements
from surgery.study.words import Words, read_words

COLUMNS = ("old_before", "old_after", "new_after", "reached", "held_out_change")


def compare(options: argparse.Namespace) -> None:
    """Prints one row for each combination, each share with its 95 % interval."""
    base = checkpoint_path(options.base)
    words, models = read_words(base), load_pipeline(base)
    judge = load_judge("pocket-judge")
    edits = draw_edits(words, options.concepts)
    print(
        f"{'kind':8}{'residual':10}{'mode':7}"
        + "".join(f"{name:>24}" for name in COLUMNS)
        + f"{'edit s':>10}"
    )
    looked_at = f"""sample: {{steps: {options.steps}}}
evaluate: {{samples: {options.samples}, held_out: {options.held_out}}}
"""
    for kind, residual, mode in product(options.kinds, options.residuals, options.modes):
        recipe = recipe_of(options, edits, kind, residual, mode, looked_at, options.sweeps)
        effect, elapsed = measured(recipe, base, models, words, judge, Store(options.store))
        cells = "".join(f"{shown(effect, name):>24}" for name in COLUMNS)
        print(f"{kind:8}{residual:10}{mode:7}{cells}{elapsed:10.1f}", flush=True)


def draw_edits(words: Words, count: int) -> list[tuple[str, str]]:
    """Sources drawn with seed 0, destinations uniformly with seed 0 from the concepts that are not edited."""
    names = list(words.concepts)
    sources = random.Random(0).sample(names, count)
    others = [name for name in names if name not in sources]
    return list(zip(sources, random.Random(0).choices(others, k=count), strict=True))


def recipe_of(
    options: argparse.Namespace,
    edits: Sequence[tuple[str, str]],
    kind: str,
    residual: str,
    mode: str,
    more: str = "",
    sweeps: int | None = None,
) -> Recipe:
    concepts = "\n".join(
        f"        - {{source: {s}{f', destination: {d}' if kind == 'update' else ''}}}" for s, d in edits
    )
    return parse_recipe(
        f"""surgery: 1
base: {options.base}
seed: {options.seed}
edits:
  - emcid:
      preset: pocket
      kind: {kind}
      concepts:
{concepts}
      offsets: {{mode: {mode}}}
      update: {{residual: {residual}{"" if sweeps is None else f", sweeps: {sweeps}"}}}
{more}"""
    )


def measured(
    recipe: Recipe, base: Any, models: Any, words: Words, judge: Judge, store: Store
) -> tuple[EditEffect, float]:
    checkpoint = open_checkpoint(base)
    started = time.monotonic()
    computed = compute_patch(recipe, plan_recipe(recipe, checkpoint), checkpoint, models, store)
    elapsed = time.monotonic() - started
    effect, _ = measure_replacements(recipe, computed.outcomes, words, models, computed.patch, judge, store)
    if effect is None:
        raise SystemExit("nothing could be measured: the judge knows none of the concepts")
    return effect, elapsed


def shown(effect: EditEffect, name: str) -> str:
    score: Score | None = effect.score(name)
    if score is None:
        return "–"
    return f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
