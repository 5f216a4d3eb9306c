"""What an edit did to predictions, before any picture is drawn: drift, energy, alignment, leaks, binding.

All probes are pairs: the same noisy latents at the same timestep, by the unedited and by the edited weights.
A score is a prediction less the one without a prompt. Directions of the unedited model are the ruler
throughout: held against its own directions, a concept that is gone would be 0/0. These are numbers about
predictions; that a picture no longer shows a concept, a judge must say.

Source: section 6.3 of the study; the scores of arXiv 2312.15964.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.diffusion import (
    Models,
    PassingGuide,
    PromptGuide,
    derived_seed,
    device_and_dtype,
    generator_for,
    noise_schedule,
    predict_under,
    read_prompts,
    resident,
    sample_latents,
)
from surgery.diffusion.algebra import cosine, norm
from surgery.diffusion.conditions import read_without
from surgery.evaluate.statistics import bootstrap
from surgery.progress import track
from surgery.record import Score

LEVELS: Final = 10
"""Timesteps, in the middle of equal parts of the schedule."""
_EACH: Final = 2  # levels that each picture is looked at
_TOGETHER: Final = 4  # phrases whose predictions are held at a time
_FIRES: Final = 0.7  # the published threshold below which an abstract part is added
_WORST: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What is asked about one edited phrase.

    Attributes:
        subject: The phrase.
        anchor: What it was edited to; None for nothing.
        paraphrases: Other names of the same thing.
        near: Unedited phrases nearest to it.
        unrelated: Unedited phrases of other kinds, which say what is usual.
        template: A longer prompt with one ``{}``.
    """

    subject: str
    anchor: str | None = None
    paraphrases: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    unrelated: tuple[str, ...] = ()
    template: str = "a photo of {}"

    @property
    def bystanders(self) -> tuple[str, ...]:
        """All that should stay."""
        return (*self.near, *self.unrelated)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Two things in one prompt, neither of them edited."""
        others = self.bystanders
        return tuple(zip(others[0::2], others[1::2], strict=False))[:2]

    def texts(self) -> tuple[str, ...]:
        """All that is read; the first is the empty prompt."""
        scenes = [self.template.replace("{}", name) for name in (self.subject, *self.unrelated[:2])]
        both = [f"{first} and {second}" for first, second in self.pairs]
        anchor = [] if self.anchor is None else [self.anchor]
        asked = ["", self.subject, *scenes, *self.paraphrases, *anchor, *self.bystanders, *both]
        return tuple(dict.fromkeys(asked))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What was found of one phrase.

    Attributes:
        subject: The phrase.
        scores: By name; see ``probe_edit``.
        curves: By name, one number for each of the timesteps.
        timesteps: From clean to noisy.
        leak: The paraphrase through which most comes back; empty without any.
    """

    subject: str
    scores: tuple[Score, ...]
    curves: Mapping[str, tuple[float, ...]]
    timesteps: tuple[int, ...]
    leak: str = ""

    def score(self, name: str) -> Score | None:
        """The score of a name."""
        return next((one for one in self.scores if one.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    """Noisy latents: of pictures of the concept, of others, and of the sampler's own paths."""

    noisy: Float[Tensor, "points channels height width"]
    timesteps: Int64[Tensor, " points"]
    source: Int64[Tensor, " points"]

    def __len__(self) -> int:
        return len(self.timesteps)


def probe_edit(
    models: Models,
    edited: Callable[[], AbstractContextManager[Any]],
    questions: Sequence[Probed],
    *,
    latents: int = 64,
    guidance: float = 5.0,
    steps: int = 20,
    batch: int = 16,
    seed: int = 0,
) -> tuple[ProbeResult, ...]:
    """Probe each phrase with and without the edit.

    Scores, each with an interval over the latents drawn anew; a dash marks edited weights:

    ============================ ===========================================================================
    ``drift``                    ‖e₀' - e₀‖² / ‖e₀‖²; ``drift amplified``: times (1 - w)², as guidance does
    ``energy``                   median of ‖s'_c‖ / ‖s_c‖; 0: erased to nothing
    ``alignment``                mean of cos(s'_c, s_c); 1: untouched, 0: erased, below: turned round
    ``anchor alignment``         cos(s'_c, s_anchor), and ``… before`` cos(s_c, s_anchor)
    ``presence``                 cos(s'_p, s_c) of a prompt p that names c; ``… before``, and ``… without``
                                 of prompts that name others
    ``leak``                     the largest cos(s'_x, s_c) over paraphrases x; ``… before``
    ``bystanders``               mean of cos(s'_d, s_d); ``… worst`` its lowest 5 %
    ``bystander energy``         median of ‖s'_d‖ / ‖s_d‖
    ``fusion``                   share of points of two-thing prompts of bystanders at which guidance by
                                 subjects adds an abstract part; ``… before``
    ============================ ===========================================================================

    Args:
        models: The unedited pipeline.
        edited: Makes a context that gives the edited one while it is entered; it may change ``models``.
        questions: What is asked about.
        latents: Pictures and paths that points are taken from, for each phrase.
        guidance: Scale of the paths, and w of the amplified drift.
        steps: Of the sampler that draws pictures and paths.
        batch: Points at a time.
        seed: Of all noise.
    """
    found: list[ProbeResult] = []
    for start in track(range(0, len(questions), _TOGETHER), "probing", unit="part"):
        asked = questions[start : start + _TOGETHER]
        points = [_points(models, one, latents, guidance, steps, batch, seed) for one in asked]
        before = _all(models, asked, points, batch)
        with edited() as other:
            after = _all(models if other is None else other, asked, points, batch)
        most = len(noise_schedule(models.scheduler).remaining)
        found += [
            _Told(one, some, *both, guidance=guidance, most=most).result()
            for one, some, *both in zip(asked, points, before, after, strict=True)
        ]
    return tuple(found)


def _points(
    models: Models, asked: Probed, latents: int, guidance: float, steps: int, batch: int, seed: int
) -> _Points:
    schedule = noise_schedule(models.scheduler)
    levels = schedule.spread(LEVELS)
    scene = asked.template.replace("{}", asked.subject)
    others = [asked.template.replace("{}", name) for name in asked.unrelated] or [""]
    third = -(-latents // 3)
    prompts = [scene] * third + [others[number % len(others)] for number in range(third)]
    seeds = [derived_seed(seed, "probe", asked.subject, number) for number in range(latents)]
    clean = sample_latents(
        models, prompts, seeds[: len(prompts)], steps=steps, guidance=guidance, batch=batch
    )
    clean = clean.float().cpu()
    generator = generator_for(seed, "probe noise", asked.subject)
    rows = torch.arange(len(clean)).repeat_interleave(_EACH)
    which = [(row + turn * LEVELS // _EACH) % LEVELS for row in range(len(clean)) for turn in range(_EACH)]
    timesteps = torch.tensor([levels[level] for level in which])
    noise = torch.randn((len(rows), *clean.shape[1:]), generator=generator)
    noisy, source = [schedule.noisy(clean[rows], noise, timesteps)], [rows]
    # on the sampler's own paths, at its own timesteps
    passing = latents - len(prompts)
    if passing > 0:
        kept = sorted({(2 * level + 1) * steps // (2 * LEVELS) for level in range(LEVELS)})
        turn = len(kept) // _EACH or 1
        inner = PromptGuide(models, [scene], guidance)
        for start in range(0, passing, batch):
            own = torch.arange(start, min(start + batch, passing))
            guide = PassingGuide(inner, kept)
            sample_latents(
                models,
                [scene] * len(own),
                [seeds[len(prompts) + row] for row in own.tolist()],
                steps=steps,
                batch=batch,
                guide=guide,
                halve=False,
            )
            for number, (seen, when) in enumerate(zip(guide.noisy, guide.timesteps, strict=True)):
                mine = own % turn == number % turn
                noisy.append(seen[mine])
                timesteps = torch.cat([timesteps, when[mine]])
                source.append(own[mine] + len(clean))
    return _Points(noisy=torch.cat(noisy), timesteps=timesteps, source=torch.cat(source))


def _all(
    models: Models, questions: Sequence[Probed], points: Sequence[_Points], batch: int
) -> list[dict[str, Tensor]]:
    """The prediction of every text at every point, question by question."""
    with resident(models.unet):
        return [
            _predicted(models, one.texts(), some, batch) for one, some in zip(questions, points, strict=True)
        ]


@torch.no_grad()
def _predicted(models: Models, texts: Sequence[str], points: _Points, batch: int) -> dict[str, Tensor]:
    device, dtype = device_and_dtype(models.unet)
    reading, without = read_prompts(models, texts), read_without(models, "")
    found = {}
    for row, text in enumerate(texts):
        parts = []
        for start in range(0, len(points), batch):
            part = slice(start, start + batch)
            noisy = points.noisy[part].to(device, dtype)
            own = (reading.select([row]) if text else without).to(noisy).repeated(len(noisy))
            parts.append(predict_under(models, noisy, points.timesteps[part].to(device), own).float().cpu())
        found[text] = torch.cat(parts)
    return found


class _Told:
    """Predictions before and after, as numbers for each point."""

    def __init__(
        self,
        asked: Probed,
        points: _Points,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        *,
        guidance: float,
        most: int,
    ) -> None:
        self.asked, self.points, self.guidance, self.most = asked, points, guidance, most
        self.base, self.other = before, after
        self.old = {text: one - before[""] for text, one in before.items()}
        self.new = {text: one - after[""] for text, one in after.items()}
        self.groups = points.source.numpy()

    def result(self) -> ProbeResult:
        """Scores with intervals, and curves over timesteps."""
        asked, old, new = self.asked, self.old, self.new
        subject, scene = asked.subject, asked.template.replace("{}", asked.subject)
        moved = _flat(norm(self.other[""] - self.base[""])) ** 2
        size = _flat(norm(self.base[""])) ** 2
        energy = _shares(new[subject], old[subject])
        alignment = _flat(cosine(new[subject], old[subject]))
        drift = self._score("drift", lambda rows: float(moved[rows].sum() / size[rows].sum()))
        amplified = (1 - self.guidance) ** 2
        scores = [
            drift,
            Score(
                name="drift amplified",
                value=amplified * drift.value,
                low=amplified * drift.low,
                high=amplified * drift.high,
                count=drift.count,
            ),
            self._middle("energy", energy),
            self._mean("alignment", alignment),
            self._mean("presence", _flat(cosine(new[scene], old[subject]))),
            self._mean("presence before", _flat(cosine(old[scene], old[subject]))),
        ]
        without = [asked.template.replace("{}", name) for name in asked.unrelated[:2]]
        if without:
            usual = np.mean([_flat(cosine(new[text], old[subject])) for text in without], axis=0)
            scores.append(self._mean("presence without", usual))
        if asked.anchor is not None:
            aim = old[asked.anchor]
            scores.append(self._mean("anchor alignment", _flat(cosine(new[subject], aim))))
            scores.append(self._mean("anchor alignment before", _flat(cosine(old[subject], aim))))
        leak = self._leak(scores)
        self._bystanders(scores)
        self._fusion(scores)
        curves = {"drift": moved / size, "energy": energy, "alignment": alignment}
        names, which = np.unique(self._level(), return_inverse=True)
        return ProbeResult(
            subject=subject,
            scores=tuple(scores),
            curves={
                name: tuple(float(np.median(values[which == place])) for place in range(len(names)))
                for name, values in curves.items()
            },
            timesteps=tuple(int(one) for one in names),
            leak=leak,
        )

    def _level(self) -> Any:
        """The timestep that each point counts to: paths pass others, which count to the nearest."""
        own, step = self.points.timesteps.numpy(), self.most / LEVELS
        return ((own // step + 0.5) * step).round()

    def _leak(self, scores: list[Score]) -> str:
        asked, old, new = self.asked, self.old, self.new
        if not asked.paraphrases:
            return ""
        told = {text: _flat(cosine(new[text], old[asked.subject])) for text in asked.paraphrases}
        leak = max(told, key=lambda text: float(told[text].mean()))
        scores.append(self._mean("leak", told[leak]))
        scores.append(self._mean("leak before", _flat(cosine(old[leak], old[asked.subject]))))
        return leak

    def _bystanders(self, scores: list[Score]) -> None:
        others = self.asked.bystanders
        if not others:
            return
        told = np.stack([_flat(cosine(self.new[name], self.old[name])) for name in others])
        sizes = np.stack([_shares(self.new[name], self.old[name]) for name in others])
        scores.append(self._score("bystanders", lambda rows: float(told[:, rows].mean())))
        scores.append(self._score("bystanders worst", lambda rows: float(np.quantile(told[:, rows], _WORST))))
        scores.append(self._score("bystander energy", lambda rows: float(np.median(sizes[:, rows]))))

    def _fusion(self, scores: list[Score]) -> None:
        if not self.asked.pairs:
            return
        for name, found in (("fusion", self.new), ("fusion before", self.old)):
            fired = []
            for first, second in self.asked.pairs:
                share = _flat(cosine(found[f"{first} and {second}"], found[first] + found[second]))
                # the abstract part's own cosine is √(1 - share²)
                fired.append(np.sqrt(np.clip(1 - share**2, 0, 1)) < _FIRES)
            told = np.mean(fired, axis=0)
            scores.append(self._mean(name, told))

    def _mean(self, name: str, values: Any) -> Score:
        return self._score(name, lambda rows: float(values[rows].mean()))

    def _middle(self, name: str, values: Any) -> Score:
        return self._score(name, lambda rows: float(np.median(values[rows])))

    def _score(self, name: str, statistic: Any) -> Score:
        return bootstrap(name, self.groups, statistic)


def _flat(values: Tensor) -> Any:
    return values.flatten().double().numpy()


def _shares(new: Tensor, old: Tensor) -> Any:
    """How long scores are, as a share of what they were."""
    return _flat(norm(new)) / np.maximum(_flat(norm(old)), 1e-12)
