"""All biased professions made even in one edit: mixtures tuned by pictures, and by distance without any."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from typing import Any

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.evaluate import DebiasEffect, EditEffect, debias_text
from surgery.execute import compute_patch, plan_recipe
from surgery.judge import load_judge
from surgery.recipe import Recipe, load_recipe
from surgery.record import JSON
from surgery.store import Store
from surgery.study.balance import measure_debiased
from surgery.study.effect import measure_replacements
from surgery.study.tuning import tune_recipe
from surgery.study.words import read_words

RECIPE = "debias/professions"
FACTOR = 5.0  # the mean deviation is to become so many times smaller
EXPLICIT = -0.02  # and prompts that ask outright may lose so much


def debias_professions(options: argparse.Namespace) -> bool:
    """Prints the tables of each way; whether the tuned one holds what is asked of it.

    Everything that was drawn lies in the store: the same command goes on where it was stopped.
    """
    held = True
    for way in options.ways:
        recipe = recipe_of(options, way)
        started = time.monotonic()
        balance, effect, rounds = measured(recipe, Store(options.store))
        print(f"\nmixtures by {way}: {time.monotonic() - started:.0f} s with what was stored")
        print_rounds(rounds)
        print(debias_text(balance))
        good = verdict(balance, effect)
        held = held and (good or way != "pictures")
    return held


def recipe_of(options: argparse.Namespace, way: str) -> Recipe:
    base_templates = 6  # of the measurement
    changes = {
        "base": options.base,
        "seed": str(options.seed),
        "edits[0].emcid.debias.tuning": way,
        "sample.steps": str(options.steps),
        "evaluate.held_out": str(options.held_out),
        "evaluate.samples": str(options.samples),
        "evaluate.group_samples": str(math.ceil(options.pictures / base_templates)),
    }
    changes |= dict(text.split("=", 1) for text in options.overrides)
    return load_recipe(RECIPE, changes)


def measured(recipe: Recipe, store: Store) -> tuple[DebiasEffect, EditEffect, tuple[JSON, ...]]:
    path = recipe.base_path()
    base, models, words = open_checkpoint(path), load_pipeline(path), read_words(path)
    judge = load_judge(recipe.evaluate.judge if recipe.evaluate else "pocket-judge")
    tuned = tune_recipe(recipe, base, words, models, judge, store)
    for finding in tuned.findings:
        print(f"{finding.subject}: {finding.message}")
    computed = compute_patch(recipe, plan_recipe(recipe, base), base, models, store, tuned=tuned.recipe)
    given = (recipe, computed.outcomes, words, models, computed.patch, judge, store)
    balance, (effect, _) = measure_debiased(*given), measure_replacements(*given)
    if balance is None or effect is None:
        raise SystemExit("nothing could be measured: the recipe evaluates nothing")
    return balance, effect, tuned.record


def print_rounds(record: tuple[JSON, ...]) -> None:
    for tuned in record:
        concepts: Mapping[str, Any] = tuned["concepts"]  # type: ignore[index,call-overload,assignment]  # plain data of a record
        print(
            f"{'profession':16}{'done':>6}  weight and share of {'/'.join(first_groups(concepts))} by round"
        )
        for source, found in concepts.items():
            rounds = "  ".join(
                f"{seen['weights'][0]:+.2f}: {100 * seen['counts'][0] / max(1, sum(seen['counts'])):.0f} %"
                for seen in found["rounds"]
            )
            print(f"{source:16}{'yes' if found['done'] else 'no':>6}  {rounds}")


def first_groups(concepts: Mapping[str, Any]) -> list[str]:
    return sorted({found["groups"][0] for found in concepts.values()})


def verdict(balance: DebiasEffect, effect: EditEffect) -> bool:
    factor, explicit = balance.score("deviation_factor"), balance.score("explicit_change")
    kept = effect.score("held_out_change")
    claims = {
        f"deviation at least {FACTOR:g} times smaller": factor is None or factor.value >= FACTOR,
        "explicit prompts down at most 2 points": explicit is not None and explicit.value >= EXPLICIT,
        "held-out concepts within the interval": kept is not None and kept.high >= 0 >= kept.low,
    }
    if kept is not None:
        points = (100 * kept.value, 100 * kept.low, 100 * kept.high)
        print("held-out concepts: {:+.1f} points [{:+.1f}, {:+.1f}]".format(*points))
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    return all(claims.values())
