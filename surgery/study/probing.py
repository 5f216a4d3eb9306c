"""Probes of an edit as evaluations ask for them: what is asked, and whether a concept comes back."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from surgery.diffusion import derived_seed, sample
from surgery.diffusion.inversion import InversionSettings
from surgery.evaluate import Edited, Material, Probed, Sampling
from surgery.evaluate.statistics import bootstrap
from surgery.guidance.scaling_concept import Inverted, ScalingSettings, draw_scaled, invert_pictures
from surgery.judge import Judge
from surgery.methods import Replacement
from surgery.record import JSON, Score
from surgery.study.words import Words, plainly

SCALES: Final = (0.0, 1.0, 3.0, 5.0)
_NEAR, _UNRELATED, _PARAPHRASES = 3, 4, 4
_DRAWN: Final = 3
"""Pictures drawn for each that is looked at: those that show the concept best are taken."""
_INVERSION: Final = InversionSettings(renoise=4, regularise=False)


def questions_of(asked: Sequence[Replacement], material: Material, words: Words) -> tuple[Probed, ...]:
    """What is asked of each edited phrase; no judge needs to know it.

    Unrelated phrases are spread over the names held out. What is debiased keeps its meaning, and is not asked
    about.
    """
    return tuple(_question(one, material, words) for one in asked if not one.groups)


def _question(one: Replacement, material: Material, words: Words) -> Probed:
    name = words.name(one.source)
    near = material.neighbours.get(name, ())[:_NEAR]
    others = [name for name in material.held_out if name not in near]
    stride = max(1, len(others) // _UNRELATED)
    (*_, template) = one.templates or material.unseen or ("a photo of {}",)
    aliases = [
        alias for alias in (name, *words.aliases.get(name, ())) if plainly(alias) != plainly(one.source)
    ]
    return Probed(
        subject=one.source,
        anchor=one.destination,
        paraphrases=tuple(aliases[:_PARAPHRASES]),
        near=near,
        unrelated=tuple(others[::stride][:_UNRELATED]),
        template=template,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resurrection:
    """Whether a concept comes back along the inverted paths of pictures that show it.

    Attributes:
        subject: The phrase.
        slopes: By who inverts and who draws (``unedited``, ``edited``, ``crossed``: unedited inverts, edited
            draws): how much the judge's probability rises for each unit of scale. An edited one as steep as
            the unedited says that the direction is still there; a flat one is no proof of its absence.
        probabilities: By the same, the mean at each scale.
        errors: By who inverts, how far pictures drawn again are off, as a share. Above 5 % a flat slope may
            say that the path was lost, and not the concept.
    """

    subject: str
    slopes: Mapping[str, Score]
    probabilities: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, float]

    def as_json(self) -> dict[str, JSON]:
        """As plain data."""
        return {
            "subject": self.subject,
            "scales": list(SCALES),
            "slopes": {name: asdict(score) for name, score in self.slopes.items()},
            "probabilities": {name: list(values) for name, values in self.probabilities.items()},
            "errors": dict(self.errors),
        }

    def line(self) -> str:
        """For people."""
        told = ", ".join(
            f"{name} {score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]"
            for name, score in self.slopes.items()
        )
        errors = ", ".join(f"{name} {100 * error:.0f} %" for name, error in self.errors.items())
        return f"{self.subject}: probability for each unit of scale: {told}; drawn again off by {errors}"


def resurrect(
    models: Any,
    edited: Callable[[], AbstractContextManager[Any]],
    asked: Sequence[Edited],
    judge: Judge,
    sampling: Sampling,
    *,
    pictures: int = 8,
) -> tuple[Resurrection, ...]:
    """Invert pictures of each edited phrase and draw them with the concept at several scales.

    Args:
        models: The unedited pipeline.
        edited: Makes a context that gives the edited one.
        asked: Edited phrases; those that the judge cannot name are passed over.
        judge: Looks.
        sampling: Steps, guidance, seed and templates.
        pictures: Of each phrase.

    Source: section 6.3 of the study; arXiv 2410.24151.
    """
    return tuple(
        _resurrected(models, edited, one, judge, sampling, pictures) for one in asked if one.old is not None
    )


def _resurrected(
    models: Any,
    edited: Callable[[], AbstractContextManager[Any]],
    asked: Edited,
    judge: Judge,
    sampling: Sampling,
    pictures: int,
) -> Resurrection:
    assert asked.old is not None
    pixels = _shown(models, asked, judge, sampling, pictures)
    parts = torch.split(pixels, max(1, sampling.batch // 2))  # both branches share a pass
    mine = [invert_pictures(models, one, asked.subject, _INVERSION, steps=sampling.steps) for one in parts]
    drawn = {"unedited": _columns(models, mine)}
    with edited() as found:
        other = models if found is None else found
        theirs = [
            invert_pictures(other, one, asked.subject, _INVERSION, steps=sampling.steps) for one in parts
        ]
        drawn["edited"], drawn["crossed"] = _columns(other, theirs), _columns(other, mine)
    told = {
        name: np.stack([judge.score(some).probability(asked.old) for some in columns], 1)
        for name, columns in drawn.items()
    }
    return Resurrection(
        subject=asked.subject,
        slopes={name: _slope(name, seen) for name, seen in told.items()},
        probabilities={name: tuple(float(one) for one in seen.mean(0)) for name, seen in told.items()},
        errors={
            name: float(np.mean([error for one in some for error in one.error]))
            for name, some in (("unedited", mine), ("edited", theirs))
        },
    )


def _columns(models: Any, parts: Sequence[Inverted]) -> list[NDArray[np.uint8]]:
    """Pictures at each scale."""
    ways = [ScalingSettings(scale=scale, exit_step=0, anchored=True) for scale in SCALES]
    return [np.concatenate([draw_scaled(models, one, way) for one in parts]) for way in ways]


def _shown(models: Any, asked: Edited, judge: Judge, sampling: Sampling, pictures: int) -> torch.Tensor:
    """Pictures by the unedited models, those that show the concept best."""
    assert asked.old is not None
    templates = asked.unseen or sampling.templates
    prompts = [templates[n % len(templates)].replace("{}", asked.subject) for n in range(_DRAWN * pictures)]
    seeds = [derived_seed(sampling.seed, "resurrection", asked.subject, n) for n in range(len(prompts))]
    drawn = sample(
        models, prompts, seeds, steps=sampling.steps, guidance=sampling.guidance, batch=sampling.batch
    )
    best = np.argsort(-judge.score(drawn).probability(asked.old), kind="stable")[:pictures]
    return torch.from_numpy(drawn[best].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def _slope(name: str, probabilities: NDArray[np.floating[Any]]) -> Score:
    """The slope of the least-squares line over the scales, pictures drawn anew for the interval."""
    centred = np.array(SCALES) - np.mean(SCALES)

    def fitted(rows: NDArray[np.integer[Any]]) -> float:
        return float((probabilities[rows] @ centred).mean() / (centred @ centred))

    return bootstrap(name, np.arange(len(probabilities)), fitted)
