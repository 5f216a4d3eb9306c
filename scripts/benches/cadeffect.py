"""What masks of different rules erase and harm, each at the ratio at which the concept is gone.

Rules are screened on some concepts. The best, per-row CAD, the published preset and the baselines then meet
on other ones. For every rule and concept the smallest ratio of a grid is sought at which the concept is
recognised in no more pictures than ``--level``, on prompts of its own; it is judged on other prompts, beside
pictures of other concepts. So rules are compared at equal erasure.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from caddraw import Easel, Task
from cadrules import MOST, RULES, Bank, MaskRule
from cells import interval, kept

from surgery.anatomy import weights_digest
from surgery.anatomy.components import components_of
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.judge import Judge, Trait, load_judge
from surgery.methods import Replacement
from surgery.methods.cad import CadConcept, concepts_named
from surgery.methods.cad.masks import ComponentMask
from surgery.record import JSON, json_digest
from surgery.shelf import checkpoint_path
from surgery.study.material import material_of
from surgery.study.words import Words, read_words

GRID: Final = tuple(MOST * 2.0**-step for step in range(16, -1, -1))
"""Ratios that are tried: from 8 millionths to half of the weights, each twice the one before."""
BEST: Final = 3
NEAR: Final = 20  # pictures of the nearest names, at least
VERSION: Final = 4  # goes up when cells are made otherwise

Hits = list[float]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all cells share."""

    options: argparse.Namespace
    models: Any
    easel: Easel
    words: Words
    judge: Judge
    digest: str
    names: tuple[str, ...]
    screening: tuple[CadConcept, ...]
    judging: tuple[CadConcept, ...]
    references: tuple[CadConcept, ...]
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Erased:
    """One rule on one concept: shares of pictures in which each phrase's concept is recognised.

    Attributes:
        ratio: Share of the weights that are masked, the smallest at which the concept is gone, else the
            largest of all.
        weights: How many that are.
        reached: Whether it was gone on the prompts that the ratio was sought with.
        erased: Before and after, on prompts that judge.
        others: By name, before and after.
        near: The same of the nearest names, which are others, too.
        seconds: For the scores.
    """

    ratio: float
    weights: int
    reached: bool
    erased: tuple[float, float]
    others: Mapping[str, tuple[float, float]]
    near: Mapping[str, tuple[float, float]]
    seconds: float


def cad_effect(options: argparse.Namespace) -> bool:
    """Screens the rules, then lets the best meet the baselines; prints both tables. Always true."""
    ground = ground_of(options)
    _announce(ground)
    bank = bank_of(ground)
    rules = {name: RULES[name] for name in options.rules or RULES}
    tried = {name: rule for name, rule in rules.items() if not rule.baseline}
    print(f"\nscreening: {', '.join(concept.name for concept in ground.screening)}")
    screened = _table(ground, bank, ground.screening, tried)
    best = sorted(tried, key=lambda name: -screened[name])[: options.best]
    print(f"best: {', '.join(best)}")
    met = {name: rule for name, rule in rules.items() if name in (*best, "row") or rule.baseline}
    if options.concepts:
        print(f"\njudging: {', '.join(concept.name for concept in ground.judging)}")
        _table(ground, bank, ground.judging, met)
    return True


def ground_of(options: argparse.Namespace) -> Ground:
    """Models and judge, and which names are screened, judged, referred to and watched."""
    base = checkpoint_path(options.base)
    models, words, judge = load_pipeline(base), read_words(base), load_judge("pocket-judge")
    known = [name for name in sorted(words.concepts) if judge.labels.fault(Trait(name)) is None]
    np.random.default_rng(options.seed).shuffle(known)
    ends = np.cumsum([options.screening, options.concepts, options.references, options.others])
    if ends[-1] > len(known):
        raise SystemExit(f"{ends[-1]} names were asked for; the checkpoint has {len(known)}.")
    parts = np.split(np.array(known, dtype=object), ends)
    screening, judging, references = (
        concepts_named([str(name) for name in part], seed=options.seed) for part in parts[:3]
    )
    return Ground(
        options=options,
        models=models,
        easel=Easel(options=options, judge=judge),
        words=words,
        judge=judge,
        digest=f"{weights_digest(models.unet)} {weights_digest(models.text_encoder)}",
        names=components_of(open_checkpoint(base).shapes, options.components),
        screening=screening,
        judging=judging,
        references=references,
        others=tuple(str(name) for name in parts[3]),
    )


def bank_of(ground: Ground) -> Bank:
    """What rules share."""
    return Bank(
        models=ground.models,
        names=ground.names,
        references=ground.references,
        work=ground.options.work,
        micro_batch=ground.options.micro_batch,
    )


def _announce(ground: Ground) -> None:
    options = ground.options
    rules = [RULES[name] for name in options.rules or RULES]
    screened = sum(not rule.baseline for rule in rules) * len(ground.screening)
    judged = (options.best + 1 + sum(rule.baseline for rule in rules)) * len(ground.judging)
    each = 5 * options.sought + options.pictures + 2 * len(ground.others)
    pictures = screened * each + judged * (each + 20)
    print(
        f"at most {screened + judged} cells with {pictures:,} pictures of {options.steps} steps; finished "
        f"cells are read from {options.out}",
        flush=True,
    )


def _table(
    ground: Ground, bank: Bank, concepts: Sequence[CadConcept], rules: Mapping[str, MaskRule]
) -> Mapping[str, float]:
    """One line for each rule; the mean change of other concepts by rule, all of them where one stays."""
    print(
        f"{'rule':16}{'gone':>8}{'ratio':>9}{'weights':>9}{'erased':>16}{'after':>16}{'others':>26}"
        f"{'nearest':>10}{'worst':>8}{'s':>7}",
        flush=True,
    )
    # concept by concept: the bank keeps what rules share of the last one
    found = {
        (name, concept.name): cell_of(ground, bank, name, rule, concept)
        for concept in concepts
        for name, rule in rules.items()
    }
    told = {}
    for name in rules:
        cells = [found[name, concept.name] for concept in concepts]
        # a rule that does not erase cannot win by harming little
        told[name] = float(np.mean([_beside(cell) if cell.reached else -1.0 for cell in cells]))
        print(_row(name, cells), flush=True)
    if "row" in rules:
        print("against row, concept by concept: weights, points of the concept and of all others left")
    for name in rules if "row" in rules else ():
        mine, row = ([found[one, concept.name] for concept in concepts] for one in (name, "row"))
        if name != "row" and all(cell.reached for cell in mine):
            print(_against(name, mine, row), flush=True)
    return told


def _against(name: str, cells: Sequence[Erased], row: Sequence[Erased]) -> str:
    """What a rule does beside another one at the ratios at which both erase; means and 95 % of them."""
    pairs = list(zip(cells, row, strict=True))
    fewer = [float(np.log(mine.weights / its.weights)) for mine, its in pairs]
    low, high = (np.exp(end / 100) for end in interval(fewer))
    after = [mine.erased[1] - its.erased[1] for mine, its in pairs]
    beside = [_beside(mine) - _beside(its) for mine, its in pairs]
    ends = [interval(one) for one in (after, beside)]
    told = (
        f"{100 * np.mean(one):+.1f} [{worse:.1f}, {better:.1f}]"
        for one, (worse, better) in zip((after, beside), ends, strict=True)
    )
    return f"{name:16}{np.exp(np.mean(fewer)):8.2f} [{low:.2f}, {high:.2f}] times, {', '.join(told)}"


def _row(name: str, cells: Sequence[Erased]) -> str:
    before, after = (100 * np.mean([cell.erased[place] for cell in cells]) for place in (0, 1))
    low, high = interval([cell.erased[1] for cell in cells])
    changes = [_beside(cell) for cell in cells]
    others = 100 * np.mean(changes)
    worse, better = interval(changes)
    beside = [cell.near.values() for cell in cells if cell.near]  # not drawn while rules are screened
    near, worst = (
        f"{100 * np.mean([take(one) for one in beside]):+.1f}" if beside else "-"
        for take in (_change, lambda near: min(after - before for before, after in near))
    )
    gone = f"{sum(cell.reached for cell in cells)}/{len(cells)}"
    ratio = np.exp(np.mean([np.log(cell.ratio) for cell in cells]))
    weights = np.mean([cell.weights for cell in cells])
    return (
        f"{name:16}{gone:>8}{100 * ratio:8.3f}%{weights:9.0f}{before:15.0f}%"
        f"{f'{after:.1f} [{low:.0f}, {high:.0f}]':>16}{f'{others:+.1f} [{worse:.1f}, {better:.1f}]':>26}"
        f"{near:>10}{worst:>8}{np.mean([cell.seconds for cell in cells]):7.1f}"
    )


def _beside(cell: Erased) -> float:
    """The mean change over pictures of all other concepts: two of each, and those of the near ones."""
    others, near = ([after - before for before, after in some.values()] for some in (cell.others, cell.near))
    return float(
        np.average([*others, *near], weights=[2] * len(others) + [NEAR / max(1, len(near))] * len(near))
    )


def _change(shares: Iterable[tuple[float, float]]) -> float:
    return float(np.mean([after - before for before, after in shares]))


def cell_of(ground: Ground, bank: Bank, name: str, rule: MaskRule, concept: CadConcept) -> Erased:
    """One rule on one concept; kept in a file, and read from there the next time."""
    options = ground.options
    asked: JSON = [
        ground.digest,
        options.seed,
        options.steps,
        options.dtype,
        options.level,
        options.pictures,
        options.sought,
        list(ground.names),
        list(ground.others),
        [one.name for one in ground.references],
        VERSION,
        *([] if concept in ground.screening else ["judged"]),
    ]
    place = options.out / f"{name}-{concept.name.replace(' ', '-')}-{json_digest(asked)[:10]}.json"
    return Erased(**kept(place, lambda: asdict(_erased(ground, bank, rule, concept))))


def _erased(ground: Ground, bank: Bank, rule: MaskRule, concept: CadConcept) -> Erased:
    options = ground.options
    started = time.monotonic()
    masks = rule.masks(bank, concept)
    seconds = time.monotonic() - started
    templates = ground.words.templates("test")
    seeking, judging = templates[: len(templates) // 2], templates[len(templates) // 2 :]
    screening = concept in ground.screening
    few = judging[:2]
    near = () if screening else _nearest(ground, concept)
    sought = _task(concept.name, seeking, options.sought)
    place, mask, reached = _gone(ground, bank, concept, rule, masks, sought)
    tasks = [
        _task(concept.name, judging, options.pictures),
        *(Task(phrase=name, templates=few, samples=1) for name in ground.others),
        *(Task(phrase=name, templates=few, samples=-(-NEAR // (2 * len(near)))) for name in near),
    ]
    before = ground.easel.shares(ground.models, tasks, kept=True)
    after = ground.easel.masked(ground.models, bank.weights, mask, rule.strength, tasks)
    both = list(zip(before, after, strict=True))
    count = 1 + len(ground.others)
    return Erased(
        ratio=GRID[place],
        weights=mask.count,
        reached=reached,
        erased=both[0],
        others=dict(zip(ground.others, both[1:count], strict=True)),
        near=dict(zip(near, both[count:], strict=True)),
        seconds=seconds,
    )


def _task(phrase: str, templates: Sequence[str], pictures: int) -> Task:
    """At least so many pictures, spread over the templates."""
    return Task(phrase=phrase, templates=tuple(templates), samples=-(-pictures // len(templates)))


def _gone(
    ground: Ground,
    bank: Bank,
    concept: CadConcept,
    rule: MaskRule,
    masks: Callable[[float], ComponentMask],
    sought: Task,
) -> tuple[int, ComponentMask, bool]:
    """The first place of the grid at which the concept is gone, its mask, and whether there is one.

    Pictures are asked first where nothing is left of the concept's direction, then further and further from
    there, and between.
    """
    tried: dict[int, ComponentMask] = {}

    def gone(place: int) -> bool:
        tried[place] = mask = masks(GRID[place])
        return ground.easel.gone(
            ground.models, bank.weights, mask, rule.strength, sought, ground.options.level
        )

    held_out = bank.held_out(concept)
    guess = bisect_left(
        range(len(GRID) - 1), True, key=lambda place: held_out.left(masks(GRID[place]), rule.strength) <= 0
    )
    high = first_place(gone, guess, len(GRID))
    place = min(high, len(GRID) - 1)
    return place, tried[place], high < len(GRID)


def first_place(holds: Callable[[int], bool], guess: int, count: int) -> int:
    """The first of ``count`` places at which something holds, as at all after it; ``count`` for none."""
    low, high, place, step = -1, count, guess, 1
    while high - low > 1:
        low, high = (low, place) if holds(place) else (place, high)
        if low < 0:
            place = max(0, high - step)
        elif high == count:
            place = min(count - 1, low + step)
        else:
            place = (low + high) // 2
        step *= 2
    return high


def _nearest(ground: Ground, concept: CadConcept) -> tuple[str, ...]:
    """The names nearest to a concept, by embedding and by group."""
    edit = Replacement(source=concept.name, destination=None, kind="erase")
    material, _ = material_of([edit], (), ground.words, ground.judge.labels, ground.models)
    return material.neighbours[concept.name][:5]
