"""How well scores foretell what taking random weights away does, beside what happens and beside controls.

Section 9 of the study: pairs of four paths of 50 steps, every fifth looked at, are scored; pairs of other
seeds are held out. Random masks take each weight away with probability p; the prediction is held against what
the measure of the held-out pairs does, targets frozen. The claimed predictor is chosen on other concepts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from itertools import product
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import torch
from cells import kept
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from surgery.anatomy import weights_digest, weights_of
from surgery.anatomy.components import components_of
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import at_once, derived_seed, in_order
from surgery.methods.cad import AttributionSettings, CadConcept, concepts_named
from surgery.methods.cad.gradients import Grading, measure
from surgery.methods.cad.nouns import Pairs
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.predict import Prediction, Predictor, predict
from surgery.methods.cad.settings import as_json
from surgery.progress import track
from surgery.record import JSON, json_digest
from surgery.shelf import checkpoint_path
from surgery.study.words import read_words

PUBLISHED: Final = 0.506  # Pearson r of 1,000 random ablations in the paper
PREDICTORS: Final[Sequence[Predictor]] = ("first_order", "gauss_newton", "midpoint", "midpoint_gauss_newton")
CONTROLS: Final = ("shuffled", "absolute", "magnitude")
SCHEME: Final = AttributionSettings(
    trajectories=4, sampling_steps=50, graded_steps=10, staggered=False, antithetic=False
)
RESAMPLED: Final = 2000
VERSION: Final = 2  # goes up when cells are made otherwise


@dataclass(frozen=True, kw_only=True)
class Told:
    """What each predictor says of some masks, and what happens."""

    predicted: Mapping[str, Sequence[float]]
    actual: Sequence[float]


def cad_validity(options: argparse.Namespace) -> bool:
    """Prints a table for the concepts that choose and one for those that prove; whether the claim holds."""
    base = checkpoint_path(options.base)
    names = components_of(open_checkpoint(base).shapes, ["ff"])
    models = load_pipeline(base)
    drawn = sorted(read_words(base).concepts)
    np.random.default_rng(options.seed).shuffle(drawn)
    chosen = concepts_named(drawn[: options.choosing + options.concepts], seed=options.seed)
    choosing, proving = chosen[: options.choosing], chosen[options.choosing :]
    masks = len(choosing) * options.masks_choosing + len(proving) * options.masks
    rows = masks * len(options.shares) * SCHEME.pairs
    print(f"{len(chosen)} concepts, {options.masks} masks at each share: {rows:,} rows of the U-Net forward")
    started, options.kept = time.monotonic(), {}
    options.proving = {concept.name for concept in proving}
    told = {
        (concept.name, share): cell(options, models, names, concept, share)
        for concept, share in product(chosen, options.shares)
    }
    print(f"{time.monotonic() - started:.0f} s with what was there")
    best = print_table("concepts that choose", choosing, options.shares, told)
    print(f"chosen: {best}\n")
    print_table("concepts that prove", proving, options.shares, told)
    return verdict(best, proving, options.shares, told)


def cell(
    options: argparse.Namespace, models: Any, names: tuple[str, ...], concept: CadConcept, share: float
) -> Told:
    """One concept at one share; kept in a file, and read from there the next time."""
    asked: JSON = [weights_digest(models.unet), options.seed, as_json(SCHEME), list(PREDICTORS), VERSION]
    masks = _masks(options, concept)
    name = f"{concept.name.replace(' ', '-')}-{share:g}-{masks}-{json_digest(asked)[:12]}.json"
    place = options.out / name

    def made() -> Mapping[str, Any]:
        return asdict(_told(options, models, names, concept, share))

    return Told(**kept(place, made))


def _masks(options: argparse.Namespace, concept: CadConcept) -> int:
    """How many a concept is tried with; those that choose take fewer."""
    count: int = options.masks if concept.name in options.proving else options.masks_choosing
    return count


def _told(
    options: argparse.Namespace, models: Any, names: tuple[str, ...], concept: CadConcept, share: float
) -> Told:
    graded, held, whole = prepared(options, models, names, concept)
    grading = Grading(names=names, micro_batch=options.micro_batch)
    halfway = {
        rule: predict(models, graded, grading, rule, share=share) for rule in PREDICTORS if rule not in whole
    }
    return ask(options, models, names, {**whole, **halfway}, held, concept, share)


Prepared = tuple[Pairs, Pairs, Mapping[Predictor, Prediction]]


def prepared(
    options: argparse.Namespace, models: Any, names: tuple[str, ...], concept: CadConcept
) -> Prepared:
    """Pairs to score and to hold out, and the predictions that no share enters; of the last concept kept."""
    if concept not in options.kept:
        (graded,) = pairs_of(models, [concept], SCHEME)
        (held,) = pairs_of(models, [concept], SCHEME, purpose="held out")
        grading = Grading(names=names, micro_batch=options.micro_batch)
        whole = {
            rule: predict(models, graded, grading, rule) for rule in PREDICTORS if not rule.startswith("mid")
        }
        options.kept = {concept: (graded, held, whole)}
    found: Prepared = options.kept[concept]
    return found


def ask(
    options: argparse.Namespace,
    models: Any,
    names: tuple[str, ...],
    predictions: Mapping[Predictor, Prediction],
    held: Pairs,
    concept: CadConcept,
    share: float,
) -> Told:
    """Every mask by every rule, and for real; all masks see the same pairs."""
    weights = {name: weight.detach() for name, weight in weights_of(models, names).items()}
    before = measure(models, held, {}, options.micro_batch).values.double().sum()
    lines = _lines(predictions, weights, torch.Generator().manual_seed(concept.seed))
    masks = _masks(options, concept)
    workers = at_once(models.unet, masks)
    copies: SimpleQueue[Any] = SimpleQueue()
    for _ in range(workers):
        one = copy(models)
        one.unet = deepcopy(models.unet)
        copies.put(one)

    def answer(number: int) -> tuple[Tensor, float]:
        seed = derived_seed(concept.seed, "mask", f"{share:g}", str(number))
        generator = torch.Generator().manual_seed(seed)
        gone = {name: torch.rand(one.shape, generator=generator) < share for name, one in weights.items()}
        told = lines @ _vector(gone, weights)
        masked = {name: weight.masked_fill(gone[name], 0) for name, weight in weights.items()}
        own = copies.get()
        after = measure(own, held, masked, options.micro_batch).values.double().sum()
        copies.put(own)
        return told, float(after - before) / len(held)

    answers = in_order(answer, range(masks), workers)
    told, actual = zip(*track(answers, f"{concept.name}, {share:g}", unit="mask", total=masks), strict=True)
    columns = torch.stack(told, 1).tolist()
    rules = (*predictions, *CONTROLS)
    return Told(predicted=dict(zip(rules, columns, strict=True)), actual=list(actual))


def _lines(
    predictions: Mapping[Predictor, Prediction], weights: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """What each rule and control says of each weight's going, float64 [rules, weights]."""
    rows = []
    for prediction in predictions.values():
        row = -_vector(prediction.linear, weights)
        rows.append(row + _vector(prediction.square, weights) if prediction.square else row)
    first = _vector(predictions["first_order"].linear, weights)
    shuffled = first[torch.randperm(len(first), generator=generator)]
    rows += [-shuffled, -first.abs(), -_vector(weights, weights).abs()]
    return torch.stack(rows)


def _vector(values: Mapping[str, Tensor], order: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values[name].flatten().double() for name in order])


Cells = Mapping[tuple[str, float], Told]


def print_table(
    title: str, concepts: Sequence[CadConcept], shares: Sequence[float], told: Cells
) -> Predictor:
    """Mean Pearson r (Spearman, root mean square error) of every rule; the rule with the best worst share."""
    print(f"\n{title}: {', '.join(concept.name for concept in concepts)}")
    print(f"{'predictor':24}" + "".join(f"{f'p = {share:g}':>26}" for share in shares))
    for rule in (*PREDICTORS, *CONTROLS):
        columns = []
        for share in shares:
            cells = [told[concept.name, share] for concept in concepts]
            r = np.mean([pearsonr(one.predicted[rule], one.actual)[0] for one in cells])
            rho = np.mean([spearmanr(one.predicted[rule], one.actual)[0] for one in cells])
            error = np.mean(
                [np.sqrt(np.mean(np.subtract(one.predicted[rule], one.actual) ** 2)) for one in cells]
            )
            columns.append(f"{r:+.3f} {rho:+.3f} {error:9.3g}")
        print(f"{rule:24}" + "".join(f"{column:>26}" for column in columns))
    return max(PREDICTORS, key=lambda rule: min(_mean(rule, concepts, share, told) for share in shares))


def _mean(rule: str, concepts: Sequence[CadConcept], share: float, told: Cells) -> float:
    return float(np.mean([_r(told[concept.name, share], rule) for concept in concepts]))


def _r(one: Told, rule: str) -> float:
    return float(pearsonr(one.predicted[rule], one.actual)[0])


def verdict(rule: Predictor, concepts: Sequence[CadConcept], shares: Sequence[float], told: Cells) -> bool:
    """The mean over concepts with its interval, masks drawn anew; and each concept by itself."""
    held = True
    for share in shares:
        cells = [told[concept.name, share] for concept in concepts]
        low, high = interval(cells, rule)
        good = low > PUBLISHED
        held = held and good
        each = ", ".join(
            f"{concept.name} {_r(one, rule):.3f}" for concept, one in zip(concepts, cells, strict=True)
        )
        print(
            f"p = {share:g}: {rule} {_mean(rule, concepts, share, told):.3f} [{low:.3f}, {high:.3f}] "
            f"{'holds' if good else 'FAILS'} (above {PUBLISHED}); {each}"
        )
    return held


def interval(cells: Sequence[Told], rule: str) -> tuple[float, float]:
    """Percentiles of the mean r over concepts, with the masks of each drawn anew."""
    generator = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLED):
        rs = []
        for one in cells:
            drawn = generator.integers(0, len(one.actual), len(one.actual))
            rs.append(np.corrcoef(np.array(one.predicted[rule])[drawn], np.array(one.actual)[drawn])[0, 1])
        means.append(np.mean(rs))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
