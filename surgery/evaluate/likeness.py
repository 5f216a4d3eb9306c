"""How like each other pictures are: each to its partner of the same seed, and one set to another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.linalg import eigh
from torch.nn.functional import interpolate

from surgery.evaluate.pictures import Pictures
from surgery.evaluate.statistics import Groups, bootstrap
from surgery.judge import FeatureJudge, Judge, Verdicts
from surgery.record import Score

Features = Float[np.ndarray[Any, Any], "pictures width"]

# pictures are compared at this side, as perceptual distances in this field are
_SIDE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is kept of some pictures: the verdicts and, where they are looked at closely, more.

    Attributes:
        verdicts: Of the judge.
        features: As the judge sees them.
        small: The pictures themselves, 64 pixels a side at most.
    """

    verdicts: Verdicts
    features: Features | None = None
    small: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"] | None = None


def look_at(pictures: Pictures, judge: Judge, *, closely: bool = False) -> Look:
    """What is kept of some pictures."""
    verdicts = judge.score(pictures)
    if not closely:
        return Look(verdicts=verdicts)
    features = cast(FeatureJudge, judge).features(pictures)
    return Look(verdicts=verdicts, features=features, small=_reduced(pictures))


def feature_faults(judge: Judge) -> list[str]:
    """Why pictures cannot be compared with this judge's eyes, if they cannot."""
    if hasattr(judge, "features"):
        return []
    return [
        f"judge {judge.name!r} gives verdicts and no features, and pictures are compared by features; "
        "expected a judge that has them. Take another judge, or leave the suite out."
    ]


def _reduced(pictures: Pictures) -> UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]:
    if max(pictures.shape[1:3]) <= _SIDE:
        return pictures
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    small = interpolate(values, size=_SIDE, mode="area").round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).numpy()


def likeness_scores(before: Sequence[Look], after: Sequence[Look], ideal: Look | None) -> list[Score]:
    """Distances of the pictures after from those before, phrase by phrase in the same order.

    ``moved`` is the mean distance of partners divided by that of two pictures of one phrase before, pixel by
    pixel (root mean square): 0 is the same picture, 1 as far as another seed's. ``frechet`` is the Fréchet
    distance of all features.
    """
    groups = np.repeat(np.arange(len(before)), [len(look.verdicts) for look in before])
    then, now = (np.concatenate([_features(look) for look in looks]) for looks in (before, after))
    steps = [_distances(_small(one), _small(other)) for one, other in zip(before, after, strict=True)]
    seeds = [_distances(_small(look), np.roll(_small(look), 1, axis=0)) for look in before]
    apart, usual = np.concatenate(steps), np.concatenate(seeds)
    scores = []
    if usual.any():  # a phrase of one picture has no other seed
        scores.append(bootstrap("moved", groups, lambda rows: float(apart[rows].mean() / usual[rows].mean())))
    if len(then) < 2:  # one picture has no spread
        return scores
    scores.append(bootstrap("frechet", groups, lambda rows: frechet_distance(then[rows], now[rows])))
    if ideal is not None:
        scores += [
            _from_drawings("frechet_drawings_before", groups, then, ideal),
            _from_drawings("frechet_drawings_after", groups, now, ideal),
        ]
    return scores


def _from_drawings(name: str, groups: Groups, own: Features, ideal: Look) -> Score:
    goal = _features(ideal)
    return bootstrap(name, groups, lambda rows: frechet_distance(goal, own[rows]))


def frechet_distance(one: Features, other: Features) -> float:
    """The Fréchet distance of two sets of features, each taken as a Gaussian.

    ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½). The features decide what it means: only distances by one judge
    compare. Few pictures make it larger: with n pictures of width d by about tr(Σ) d / n.

    Source: Heusel et al. 2017, eq. 6; the square root through Σ₁^½ Σ₂ Σ₁^½, which is symmetric.
    """
    first, second = one.astype(np.float64), other.astype(np.float64)
    gap = first.mean(axis=0) - second.mean(axis=0)
    own, others = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = eigh(own)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ others @ root).clip(0)).sum()
    return float(max(0.0, gap @ gap + np.trace(own) + np.trace(others) - 2 * shared))


def _features(look: Look) -> Features:
    assert look.features is not None
    return look.features


def _small(look: Look) -> np.ndarray[Any, Any]:
    assert look.small is not None
    return look.small


def _distances(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Float[np.ndarray[Any, Any], " n"]:
    gap = one.astype(np.float32) - other.astype(np.float32)
    distances: np.ndarray[Any, Any] = np.sqrt(np.square(gap).mean(axis=(1, 2, 3)))
    return distances
