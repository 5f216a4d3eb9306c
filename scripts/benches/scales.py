"""ScalingConcept on drawn pictures: how well paths come back, and what the scale does inside and outside.

Each picture shows two things in opposite corners. The first is scaled; the second and the background are what
should stay. How far they move is measured in pixels, outside of the first one's corner, against the picture
that is drawn again from the same path at scale 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cells import kept
from fontdrawn import vocabulary_of
from scipy.stats import bootstrap
from torch import Tensor

from surgery.anatomy import weights_digest
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import decode
from surgery.diffusion.inversion import InversionSettings
from surgery.guidance.scaling_concept import OBJECT, ScalingSettings, draw_scaled, invert_pictures
from surgery.judge import Judge, Trait, load_judge
from surgery.progress import track
from surgery.record import JSON, json_digest
from surgery.report import SheetRow, contact_sheet
from surgery.shelf import checkpoint_path
from surgery.study.samples import write_sheet

Pictures = np.ndarray[Any, Any]
PASSES: Final = (0, 1, 2, 4, 8)
SCALES: Final = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
_INVERSIONS: Final[Mapping[str, Callable[[int], InversionSettings]]] = {
    "published": lambda passes: InversionSettings(renoise=passes, regularise=True),
    "unregularised": lambda passes: InversionSettings(renoise=passes, regularise=False),
    # the last pass alone, and as many at every step: how fast the fixed point is reached
    "last pass": lambda passes: InversionSettings(
        renoise=passes, regularise=False, average=(0, 0), average_above=(0, 0), most_below=passes
    ),
}
VERSION: Final = 2  # goes up when cells are made otherwise


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures of two things each, the names, and a mask of all but the first one's corner."""

    pixels: Tensor
    first: tuple[str, ...]
    second: tuple[str, ...]
    outside: np.ndarray[Any, Any]


def scales(options: argparse.Namespace) -> None:
    """Prints the error of drawing again by passes, then both schedules by scale."""
    base = checkpoint_path(options.base)
    models, judge = load_pipeline(base), load_judge("pocket-judge")
    drawn = drawn_pairs(base, judge, options)
    key: list[JSON] = [weights_digest(models.unet), options.seed, options.steps, options.pictures, VERSION]
    print(f"{len(drawn.first)} drawn pictures, {options.steps} steps; drawn again with the concept as it is:")
    for kind, made in _INVERSIONS.items():
        for passes in PASSES:
            inversion = made(passes)

            def errors(inversion: InversionSettings = inversion) -> Mapping[str, Any]:
                found = [
                    invert_pictures(
                        models, drawn.pixels[[place]], name, inversion, steps=options.steps
                    ).error[0]
                    for place, name in track(list(enumerate(drawn.first)), "inverting", unit="picture")
                ]
                return {"errors": found}

            name = f"error-{passes}-{kind.replace(' ', '-')}-{json_digest(key)[:10]}.json"
            told = np.array(kept(options.out / name, errors)["errors"])
            print(
                f"K {passes} {kind:14} {_mean(100 * told, 2)} % (worst {100 * told.max():.1f} %)", flush=True
            )
    print("\nscaled: the judge's probability of the concept, of the other thing, and pixels moved outside")
    place = options.out / f"scaled-{json_digest([*key, options.passes])[:10]}.json"
    cells = kept(place, lambda: _scaled(models, judge, drawn, options))
    for kind in _schedules(options.steps):
        for scale in SCALES:
            own = {what: np.array(values) for what, values in cells[kind][f"{scale:g}"].items()}
            print(
                f"{kind:20} ω {scale:g}: concept {_mean(own['concept'], 2)}, other {_mean(own['other'], 2)}, "
                f"moved {_mean(own['moved'], 1)} of 255 outside, {_mean(own['inside'], 1)} inside",
                flush=True,
            )
    if options.sheet is not None:
        _sheet(models, drawn, options)


def _mean(values: np.ndarray[Any, Any], digits: int) -> str:
    """The mean over pictures and its 95 % interval."""
    found = bootstrap((values,), np.mean, rng=np.random.default_rng(0), method="percentile")
    low, high = found.confidence_interval
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _schedules(steps: int) -> dict[str, ScalingSettings]:
    mixed = round(OBJECT.exit_step * steps / 50)
    published = replace(OBJECT, exit_step=mixed)
    return {
        "published": published,
        "anchored": replace(published, anchored=True),
        "anchored, unmixed": replace(OBJECT, exit_step=0, anchored=True),
    }


Told = dict[str, dict[str, list[float]]]


def _scaled(models: Any, judge: Judge, drawn: Drawn, options: argparse.Namespace) -> dict[str, Told]:
    """By schedule and scale: what is seen in each picture, all drawn from one inversion of it."""
    inversion, ways = InversionSettings(renoise=options.passes, regularise=False), _schedules(options.steps)
    columns: dict[tuple[str, float], list[Pictures]] = {one: [] for one in product(ways, SCALES)}
    again = []
    for place, name in track(list(enumerate(drawn.first)), "scaling", unit="picture"):
        found = invert_pictures(models, drawn.pixels[[place]], name, inversion, steps=options.steps)
        again.append(decode(models.vae, found.again)[0].astype(int))
        for kind, scale in columns:
            settings = replace(ways[kind], scale=scale)
            columns[kind, scale].append(draw_scaled(models, found, settings)[0])
    told: dict[str, Told] = {kind: {} for kind in ways}
    for (kind, scale), pictures in columns.items():
        seen = judge.score(np.stack(pictures))
        rows = range(len(pictures))
        gap = np.abs(np.stack(pictures).astype(int) - np.stack(again)).mean(3)
        told[kind][f"{scale:g}"] = {
            "concept": [float(seen.probability(Trait(drawn.first[row]))[row]) for row in rows],
            "other": [float(seen.probability(Trait(drawn.second[row]))[row]) for row in rows],
            "moved": gap[:, drawn.outside].mean(1).tolist(),
            "inside": gap[:, ~drawn.outside].mean(1).tolist(),
        }
    return told


def drawn_pairs(base: Path, judge: Judge, options: argparse.Namespace) -> Drawn:
    """Pictures by the font; pairs drawn evenly among the names that the checkpoint and the judge know."""
    from drawings import SLOT, EmojiFont, Scene, Subject, draw

    vocabulary = vocabulary_of(base)
    known = [
        one
        for one in vocabulary.drawn
        if one.share_man is None and judge.labels.fault(Trait(one.name)) is None
    ]
    font, rng = EmojiFont(), np.random.default_rng(options.seed)
    pictures, first, second = [], [], []
    for _ in range(options.pictures):
        one, other = (known[place] for place in rng.choice(len(known), 2, replace=False))
        scene = Scene(
            subjects=(Subject(concept=one), Subject(concept=other)),
            background=str(rng.choice(list(vocabulary.backgrounds))),
        )
        pictures.append(draw(font, vocabulary, scene, rng))
        first.append(one.name)
        second.append(other.name)
    outside = np.ones(pictures[0].shape[:2], bool)
    outside[:SLOT, :SLOT] = False
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Drawn(pixels=pixels, first=tuple(first), second=tuple(second), outside=outside)


def _sheet(models: Any, drawn: Drawn, options: argparse.Namespace) -> None:
    inversion = InversionSettings(renoise=options.passes, regularise=False)
    shown = (0.0, 1.0, 3.0, 5.0)
    ways = _schedules(options.steps)
    rows = []
    for place, name in enumerate(drawn.first[:8]):
        found = invert_pictures(models, drawn.pixels[[place]], name, inversion, steps=options.steps)
        own = ((drawn.pixels[place] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        columns = [
            np.stack([draw_scaled(models, found, replace(way, scale=scale))[0] for scale in shown])
            for way in ways.values()
        ]
        again = decode(models.vae, found.again)[0]
        filled = [np.stack([own, again, own, again]), *columns]
        rows.append(SheetRow(label=name, groups=tuple(filled), note=f"beside {drawn.second[place]}"))
    groups = ["drawn; drawn again (twice)", *(f"{name}: ω 0, 1, 3, 5" for name in ways)]
    write_sheet(contact_sheet(rows, groups=groups, cell=96), options.sheet, overwrite=True)
    print(f"sheet: {options.sheet}")
