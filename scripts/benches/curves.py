"""Curves over the number of concepts: EMCID as it comes and UCE, update and forget, on the same pictures.

Half of all concepts may be edited (drawn with seed 0, the first of them in the small cells); destinations are
drawn uniformly with seed 0 from the other half, and what is left of that is held out in every cell. Aliases
are never given to the editor. Each cell is stored when it is done, and pictures and offsets before that.
Edits are computed in float32; ``--dtype`` is that of the U-Net which draws, before and after alike.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from massive import recipe_of
from painters import painters_of
from uce import uce_patch

from surgery.anatomy import settings_text
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.components import load_pipeline
from surgery.evaluate import (
    Cache,
    Edited,
    Material,
    Probe,
    Sampling,
    Section,
    headlines,
    measure_sections,
    sections_of,
)
from surgery.execute import compute_patch, plan_recipe
from surgery.judge import Judge, Trait, load_judge
from surgery.methods.emcid import OBJECT_TEMPLATES
from surgery.patch import Patch, applied
from surgery.recipe import Recipe
from surgery.record import Score, json_digest
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.weights import picture_cache
from surgery.study.words import Words, read_words

COUNTS: Final = (1, 10, 50, 100, 0)  # 0 stands for half of all
KINDS: Final = ("update", "forget")
PICTURES: Final = 1500
# a step of a picture on one core, with which the cost is said beforehand
_STEP_S: Final = {"float32": 0.022, "bfloat16": 0.014}
# of the pictures that are left beside the held-out ones: generalisation, efficacy, aliases
_PARTS: Final = {"generalisation": 0.45, "efficacy": 0.25, "aliases": 0.3}
# where there are many phrases, not every unseen template is drawn
_FEWER: Final = 3
_SHOWN: Final = (
    "source_forget",
    "source2dest",
    "generalisation_source2dest",
    "alias2dest",
    "holdout_delta",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of a curve, or one setting at a single number of concepts."""

    kind: str
    count: int
    method: str
    residual: str = "block"
    mode: str = "both"

    @property
    def name(self) -> str:
        """Its file, and what it is called."""
        own = "" if self.method == "uce" else f"-{self.residual}-{self.mode}"
        return f"{self.kind}-{self.count}-{self.method}{own}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all cells share; ``painters`` are the models with the U-Net that draws."""

    options: argparse.Namespace
    checkpoint: Checkpoint
    models: Any
    painters: Any
    words: Words
    judge: Judge
    store: Store
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    held_out: tuple[str, ...]
    others: tuple[str, ...]


def curves(options: argparse.Namespace) -> bool:
    """Draws what is missing of all cells, prints them and writes the plot; whether the conditions hold."""
    ground = _ground(options)
    half = len(ground.sources)
    cells = _cells(options, half)
    missing = [cell for cell in cells if not _done(_file(ground, cell), _key(ground, cell))]
    _announce(ground, cells, missing)
    agreement = _agreement(ground)
    found = {}
    print("".join(f"{title:>{width}}" for title, width in _head()), flush=True)
    for cell in cells:
        found[cell] = _measured(ground, cell)
        print(_row(cell, found[cell]), flush=True)
    from curves_plot import plot_curves

    with atomic_file(options.out / "curves.png", overwrite=True) as temporary:
        write_bytes(temporary, [plot_curves({cell.name: (asdict(cell), found[cell]) for cell in cells})])
    print(f"{options.out / 'curves.png'}")
    return agreement and _conditions(found, half)


def _ground(options: argparse.Namespace) -> Ground:
    base = checkpoint_path(options.base)
    words, judge, models = read_words(base), load_judge("pocket-judge"), load_pipeline(base)
    names = list(words.concepts)
    half = len(names) // 2
    sources = random.Random(0).sample(names, half)
    unedited = [name for name in names if name not in set(sources)]
    destinations = random.Random(0).choices(unedited, k=half)
    left = [name for name in unedited if name not in set(destinations)]
    return Ground(
        options=options,
        checkpoint=open_checkpoint(base),
        models=models,
        painters=painters_of(models, getattr(torch, options.dtype)),
        words=words,
        judge=judge,
        store=Store(options.store),
        sources=tuple(sources),
        destinations=tuple(destinations),
        held_out=tuple(left),
        others=tuple(dict.fromkeys(destinations)),
    )


@contextmanager
def _edited(ground: Ground, patch: Patch) -> Iterator[Any]:
    """The models that draw with the patch in, put in before the U-Net loses digits."""
    with applied(ground.models, patch) as models:
        yield painters_of(models, getattr(torch, ground.options.dtype))


def _cells(options: argparse.Namespace, half: int) -> list[Cell]:
    counts = [count or half for count in options.counts]
    cells = [
        Cell(kind=kind, count=count, method=method)
        for kind in options.kinds
        for count in counts
        for method in ("emcid", "uce")
    ]
    cells += [
        Cell(kind=kind, count=options.settings_at, method="emcid", residual=residual, mode=mode)
        for kind in options.kinds
        for residual in ("block", "mlp")
        for mode in ("text", "noise", "both")
        if options.settings_at and (residual, mode) != ("block", "both")
    ]
    return cells


def _announce(ground: Ground, cells: Sequence[Cell], missing: Sequence[Cell]) -> None:
    """The cost of what is not there yet, before it is begun."""
    after = sum(_pictures(_sections(ground, cell)) for cell in missing)
    steps, learned = ground.options.steps, sum(cell.count for cell in missing if cell.method == "emcid")
    minutes = after * steps * _STEP_S[ground.options.dtype] / 2 / 60
    print(
        f"{len(cells)} cells, {len(missing)} to do: {after:,} pictures of {steps} steps after the edits and "
        f"about {after // 4:,} before them, some {1.25 * minutes:.0f} minutes on two cores, and {learned} "
        "offsets of a few seconds each",
        flush=True,
    )


def _sections(ground: Ground, cell: Cell) -> list[Section]:
    """The suite of the kind, with as many pictures of each section as make the cell large enough."""
    material = _material(ground, cell)
    unseen = ground.words.templates("test")
    few = unseen if cell.count * len(unseen) < PICTURES // 4 else unseen[:_FEWER]
    plain = Sampling(templates=unseen, samples=1, steps=ground.options.steps)
    sections, _ = sections_of(["update"], replace(material, unseen=few), plain)
    edited = [section for section in sections if section.changes]
    whole = sum(_PARTS[section.name] for section in edited)
    left = PICTURES - 2 * len(ground.held_out) * len(unseen)
    found = [replace(s, sampling=replace(plain, samples=2)) for s in sections if not s.changes]
    for section in edited:
        each = len(section.changes) * len(section.changes[0].templates or few)
        samples = max(1, math.ceil(left * _PARTS[section.name] / whole / each))
        found.append(replace(section, sampling=replace(section.sampling, samples=samples)))
    return found


def _pictures(sections: Sequence[Section]) -> int:
    return sum(
        len(item.templates or section.sampling.templates) * section.sampling.samples
        for section in sections
        for item in section.items
    )


def _material(ground: Ground, cell: Cell) -> Material:
    edited = []
    for source, destination in _edits(ground, cell):
        edited.append(
            Edited(
                subject=source,
                old=Trait(source),
                new=None if destination is None else Trait(destination),
                destination=destination,
                taught=OBJECT_TEMPLATES,
                aliases=ground.words.aliases.get(source, ()),
            )
        )
    return Material(edited=tuple(edited), held_out=ground.held_out)


def _edits(ground: Ground, cell: Cell) -> list[tuple[str, str | None]]:
    pairs = list(zip(ground.sources, ground.destinations, strict=True))[: cell.count]
    return [(source, aim if cell.kind == "update" else None) for source, aim in pairs]


def _file(ground: Ground, cell: Cell) -> Path:
    return Path(ground.options.out) / f"{cell.name}.json"


def _measured(ground: Ground, cell: Cell) -> dict[str, Score]:
    """The headlines of one cell, from its file or made now."""
    path, key = _file(ground, cell), _key(ground, cell)
    if not _done(path, key):
        started = time.monotonic()
        patch = _patch(ground, cell)
        edit_s = time.monotonic() - started
        sections = _sections(ground, cell)
        effects = measure_sections(
            ground.painters,
            _edited(ground, patch),
            sections,
            ground.judge,
            cache=picture_cache(ground.painters, patch, ground.store),
        )
        record = {
            "key": key,
            "cell": asdict(cell),
            "edit_s": round(edit_s, 1),
            "pictures": _pictures(sections),
            "headlines": [asdict(score) for score in headlines(effects)],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, overwrite=True) as temporary:
            write_bytes(temporary, [json.dumps(record, indent=1).encode()])
    scores = json.loads(path.read_text())["headlines"]
    return {score["name"]: Score(**score) for score in scores}


def _done(path: Path, key: str) -> bool:
    return path.exists() and json.loads(path.read_text())["key"] == key


def _key(ground: Ground, cell: Cell) -> str:
    """Changes with everything that the cell's figures depend on."""
    edit = _recipe(ground, cell) if cell.method == "emcid" else None
    plan = None if edit is None else plan_recipe(edit, ground.checkpoint).identity
    sections = [repr(section) for section in _sections(ground, cell)]
    return json_digest([str(ground.checkpoint.path), asdict(cell), plan, sections, ground.options.dtype])


def _recipe(ground: Ground, cell: Cell) -> Recipe:
    named = [(source, aim or "") for source, aim in _edits(ground, cell)]
    return recipe_of(ground.options, named, cell.kind, cell.residual, cell.mode)


def _patch(ground: Ground, cell: Cell) -> Patch:
    if cell.method == "uce":
        return uce_patch(ground.checkpoint, ground.models, _edits(ground, cell), ground.others)
    recipe = _recipe(ground, cell)
    plan = plan_recipe(recipe, ground.checkpoint)
    return compute_patch(recipe, plan, ground.checkpoint, ground.models, ground.store).patch


def _agreement(ground: Ground) -> bool:
    """Whether the unedited model shows its concepts so drawn as often as with 25 steps, to one point."""
    steps, dtype = ground.options.steps, ground.options.dtype
    if steps == 25 and dtype == "float32":
        return True
    path = Path(ground.options.out) / f"agreement-{steps}-{dtype}.json"
    names = [*ground.sources, *ground.others, *ground.held_out]
    key = json_digest([str(ground.checkpoint.path), names, list(ground.words.templates("test"))])
    if not _done(path, key):
        drawn = {
            "so": _unedited(ground, ground.painters, names, steps),
            "25": _unedited(ground, ground.models, names, 25),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, overwrite=True) as temporary:
            write_bytes(temporary, [json.dumps({"key": key, "shares": drawn}).encode()])
    shares: dict[str, float] = json.loads(path.read_text())["shares"]
    so, slowly = 100 * shares["so"], 100 * shares["25"]
    gap = so - slowly
    print(
        f"unedited: {so:.2f} % with {steps} steps in {dtype}, {slowly:.2f} % with 25 in float32: "
        f"{gap:+.2f} points (at most 1 allowed)",
        flush=True,
    )
    return abs(gap) <= 1


def _unedited(ground: Ground, models: Any, names: Sequence[str], steps: int) -> float:
    from contextlib import nullcontext

    sampling = Sampling(templates=ground.words.templates("test"), samples=1, steps=steps)
    probes = tuple(Probe(subject=name, shows=Trait(name)) for name in names)
    section = Section(name="", sampling=sampling, probes=probes)
    name = json_digest([str(ground.checkpoint.path), settings_text(models.scheduler)])
    same = Cache(store=ground.store, before=name, after=name)
    effect = measure_sections(models, nullcontext(models), [section], ground.judge, cache=same)
    score = effect[""].score("held_out_before")
    assert score is not None
    return score.value


def _head() -> list[tuple[str, int]]:
    return [("cell", 28), *((name.replace("_", " "), 29) for name in _SHOWN)]


def _row(cell: Cell, scores: Mapping[str, Score]) -> str:
    return f"{cell.name:>28}" + "".join(f"{_shown(scores.get(name)):>29}" for name in _SHOWN)


def _shown(score: Score | None) -> str:
    return "–" if score is None else f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _conditions(found: Mapping[Cell, Mapping[str, Score]], half: int) -> bool:
    """The conditions at half of all concepts, each with its figure."""
    asked = {
        "update": {"source2dest": 0.80, "holdout_delta": -0.05, "alias2dest": 0.30},
        "forget": {"source_forget": 0.80, "holdout_delta": -0.05},
    }
    good = True
    for kind, bounds in asked.items():
        scores = found.get(Cell(kind=kind, count=half, method="emcid"))
        for name, bound in bounds.items() if scores else ():
            value = scores[name].value if scores and name in scores else -math.inf
            good = good and value >= bound
            held = "holds" if value >= bound else "FAILS"
            print(f"{kind}, {half} concepts: {name} {value:.3f}, at least {bound:.2f}: {held}")
    return good
