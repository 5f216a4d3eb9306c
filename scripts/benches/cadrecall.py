"""Concepts that another method erased, brought back by masking what stands in their way.

Each concept is erased by EMCID in the text encoder, or by UCE in the cross-attention. On the erased model the
denoising loss of pictures of the concept, drawn before it was erased, says which weights work against it: of
the U-Net's feed-forward layers, and where the text encoder was edited, of its own.
Masks of several ratios are tried beside random ones of their size. The same is done to concepts that the
unedited model draws badly, with its own pictures, which are no better, and with those that it learned from.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from caddraw import Easel, Task
from cells import interval, kept
from fontdrawn import font_pictures
from massive import recipe_of
from PIL import Image
from uce import uce_patch

from surgery.anatomy import weights_digest, weights_of
from surgery.anatomy.components import components_of
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import derived_seed, sample
from surgery.execute import compute_patch, plan_recipe
from surgery.judge import Trait, load_judge
from surgery.methods.cad import CadConcept, concepts_named, denoising
from surgery.methods.cad.attribution import attribute
from surgery.methods.cad.gradients import Grading
from surgery.methods.cad.masks import random_mask
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.ranked import rank
from surgery.patch import Patch, applied
from surgery.record import JSON, json_digest
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.words import Words, read_words

BADLY: Final = "drawn badly"
BADLY_BY_FONT: Final = "drawn badly, shown by the font"
# why concepts are not drawn, and among which weights those that stand in their way are looked for
WAYS: Final = MappingProxyType(
    {
        "emcid": "ff",
        "emcid, text encoder": "text_mlp",
        "uce": "ff",
        BADLY: "ff",
        BADLY_BY_FONT: "ff",
    }
)
SHOWN: Final = 20  # pictures of the concept that the masks are made from
VERSION: Final = 3  # goes up when cells are made otherwise


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """Shares of the concept's pictures that show it, and the mean of other concepts'.

    Attributes:
        before: Of the unedited model; ``erased`` after the erasure.
        masked: By ratio, the concept and the others with the mask.
        random: The same with a random mask of its size.
    """

    before: float
    erased: float
    others: float
    masked: Mapping[str, tuple[float, float]]
    random: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Ground:
    options: argparse.Namespace
    checkpoint: Checkpoint
    models: Any
    words: Words
    easel: Easel
    store: Store
    names: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]
    folder: Path


def cad_recall(options: argparse.Namespace) -> None:
    """Prints, for each way of erasing, what masks and random ones bring back."""
    with TemporaryDirectory() as folder:
        _recall(*_ground(options, Path(folder)))


def _recall(ground: Ground, concepts: tuple[CadConcept, ...]) -> None:
    weakest = _weakest(ground, ground.options.concepts)
    for way in WAYS:
        chosen = weakest if way in (BADLY, BADLY_BY_FONT) else concepts
        print(f"\n{way}: {', '.join(one.name for one in chosen)}")
        cells = [_cell(ground, way, concept) for concept in chosen]
        before, erased, others = (
            100 * float(np.mean([getattr(cell, what) for cell in cells]))
            for what in ("before", "erased", "others")
        )
        print(f"unedited {before:.0f} %, as it is {erased:.0f} %, other concepts {others:.0f} %")
        for ratio in cells[0].masked:
            rows = {kind: [getattr(cell, kind)[ratio] for cell in cells] for kind in ("masked", "random")}
            told = ", ".join(
                f"{kind} {_spelled([row[0] for row in mine])} (others {_spelled([row[1] for row in mine])})"
                for kind, mine in rows.items()
            )
            print(f"{100 * float(ratio):g} %: {told}", flush=True)


def _spelled(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{100 * float(np.mean(values)):.0f} % [{low:.0f}, {high:.0f}]"


def _ground(options: argparse.Namespace, folder: Path) -> tuple[Ground, tuple[CadConcept, ...]]:
    base = checkpoint_path(options.base)
    words, judge = read_words(base), load_judge("pocket-judge")
    known = [name for name in sorted(words.concepts) if judge.labels.fault(Trait(name)) is None]
    np.random.default_rng(options.seed).shuffle(known)
    chosen, others = known[: options.concepts], known[options.concepts :][: options.others]
    checkpoint = open_checkpoint(base)
    ground = Ground(
        options=options,
        checkpoint=checkpoint,
        models=load_pipeline(base),
        words=words,
        easel=Easel(options=options, judge=judge),
        store=Store(options.store),
        names={way: components_of(checkpoint.shapes, [part]) for way, part in WAYS.items()},
        others=tuple(others),
        folder=folder,
    )
    return ground, concepts_named(chosen, seed=options.seed)


def _tasks(ground: Ground, concept: CadConcept) -> list[Task]:
    templates = ground.words.templates("test")
    samples = -(-ground.options.pictures // len(templates))
    return [
        Task(phrase=concept.name, templates=templates, samples=samples),
        *(Task(phrase=name, templates=templates[:1], samples=1) for name in ground.others),
    ]


def _weakest(ground: Ground, count: int) -> tuple[CadConcept, ...]:
    """The concepts that the unedited model draws worst, by the prompts of the training."""
    options, labels = ground.options, ground.easel.judge.labels
    templates = ground.words.templates("train")[:2]
    names = [name for name in ground.words.concepts if labels.fault(Trait(name)) is None]
    tasks = [Task(phrase=name, templates=templates, samples=2) for name in names]
    asked: JSON = [_models(ground), options.seed, options.steps, options.dtype, names]
    place = options.out / f"drawn-{json_digest(asked)[:10]}.json"
    shares = kept(place, lambda: dict(zip(names, ground.easel.shares(ground.models, tasks), strict=True)))
    worst = sorted(names, key=lambda name: float(shares[name]))
    known = [name for name in worst if name not in ground.others]
    return concepts_named(known[:count], seed=options.seed)


def _models(ground: Ground) -> list[JSON]:
    return [weights_digest(ground.models.unet), weights_digest(ground.models.text_encoder)]


def _cell(ground: Ground, way: str, concept: CadConcept) -> Recalled:
    """One concept erased in one way; kept in a file, and read from there the next time."""
    options = ground.options
    asked: JSON = [
        [options.seed, options.steps, options.dtype, options.pictures, list(options.ratios)],
        _models(ground),
        [list(ground.others), list(ground.names[way]), SHOWN],
        VERSION,
    ]
    said = f"{way} {concept.name}".replace(",", "").replace(" ", "-")
    place = options.out / f"{said}-{json_digest(asked)[:10]}.json"
    return Recalled(**kept(place, lambda: asdict(_recalled(ground, way, concept))))


def _recalled(ground: Ground, way: str, concept: CadConcept) -> Recalled:
    tasks = _tasks(ground, concept)
    before = ground.easel.shares(ground.models, tasks, kept=True)
    shown = replace(concept, images=_pictures(ground, way, concept))
    with _erased(ground, way, concept) as models:
        erased = ground.easel.shares(models, tasks)
        masked, random = _masks(ground, models, ground.names[way], shown, tasks)
    return Recalled(
        before=before[0],
        erased=erased[0],
        others=float(np.mean(erased[1:])),
        masked=masked,
        random=random,
    )


Shares = dict[str, tuple[float, float]]


def _masks(
    ground: Ground, models: Any, names: tuple[str, ...], concept: CadConcept, tasks: Sequence[Task]
) -> tuple[Shares, Shares]:
    settings = denoising(SHOWN)
    (pairs,) = pairs_of(models, [concept], settings)
    grading = Grading(names=names, micro_batch=ground.options.micro_batch)
    against = {name: -score for name, score in attribute(models, pairs, grading).scores()}
    ranked = rank(partial(sorted, against.items()), "row", max(ground.options.ratios))
    weights = {name: one.detach().clone() for name, one in weights_of(models, names).items()}
    generator = torch.Generator().manual_seed(derived_seed(concept.seed, "random masks"))
    found: tuple[Shares, Shares] = {}, {}
    for ratio in ground.options.ratios:
        mask = ranked.mask(ratio)
        for kind, one in zip(found, (mask, random_mask(mask, generator)), strict=True):
            seen = ground.easel.masked(models, weights, one, 1.0, tasks)
            kind[f"{ratio:g}"] = seen[0], float(np.mean(seen[1:]))
    return found


def _pictures(ground: Ground, way: str, concept: CadConcept) -> tuple[Path, ...]:
    """Pictures of the concept by the unedited model, those that show it first, or by the font; drawn once."""
    if way == BADLY_BY_FONT:
        seed = derived_seed(concept.seed, "by the font")
        return font_pictures(
            checkpoint_path(ground.options.base), [concept.name], SHOWN, seed, ground.folder / concept.name
        )
    paths = tuple(ground.folder / f"{concept.name} {number}.png" for number in range(SHOWN))
    if not paths[-1].exists():
        prompts = [concept.prompts[n % len(concept.prompts)] for n in range(4 * SHOWN)]
        seeds = [derived_seed(concept.seed, "shown", n) for n in range(4 * SHOWN)]
        steps = ground.options.steps
        drawn = sample(ground.models, prompts, seeds, steps=steps, batch=16, progress=False)
        seen = ground.easel.judge.score(drawn).probability(Trait(concept.name))
        for path, number in zip(paths, np.argsort(-seen, kind="stable"), strict=False):
            Image.fromarray(drawn[number]).save(path)
    return paths


def _erased(ground: Ground, way: str, concept: CadConcept) -> AbstractContextManager[Any]:
    if way in (BADLY, BADLY_BY_FONT):
        return nullcontext(ground.models)
    by_uce = partial(uce_patch, ground.checkpoint, ground.models, [(concept.name, None)], ())
    return applied(ground.models, by_uce() if way == "uce" else _by_emcid(ground, concept.name))


def _by_emcid(ground: Ground, name: str) -> Patch:
    recipe = recipe_of(ground.options, [(name, "")], "forget", "block", "both")
    plan = plan_recipe(recipe, ground.checkpoint)
    return compute_patch(recipe, plan, ground.checkpoint, ground.models, ground.store).patch
