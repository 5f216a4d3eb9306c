"""The sampler's paths to pictures of a concept, and the points of them that are looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from surgery import progress
from surgery.checkpoint.components import ddim_like
from surgery.diffusion import (
    Models,
    Reading,
    derived_seed,
    device_and_dtype,
    in_batches,
    noise_schedule,
    predict_under,
    read_prompts,
    resident,
    together,
)
from surgery.diffusion.conditions import read_without
from surgery.diffusion.inversion import rungs_of
from surgery.diffusion.sampling import latent_shape
from surgery.methods.cad.nouns import CadConcept, Pairs
from surgery.methods.cad.settings import AttributionSettings

Keep: TypeAlias = Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""Gives the tensors of a named part of the work: made now, or kept from a run that was stopped."""


def made_now(part: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Keeps nothing."""
    return make()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """The timesteps that a path passes, and which of its steps are looked at; it ends there.

    ``shares`` are those of the picture that is left (ᾱ) before each step, and after the last.
    """

    timesteps: tuple[int, ...]
    shares: tuple[float, ...]
    graded: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """One path: whose it is, and where it goes. A mirrored one starts from the negative of its noise."""

    concept: int
    prompt: int
    seed: int
    way: _Way
    mirrored: bool = False

    @property
    def length(self) -> int:
        return self.way.graded[-1] + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    path: int
    timestep: int
    noisy: Tensor
    target: Tensor


def graded_steps(settings: AttributionSettings) -> tuple[int, ...]:
    """Which of the sampler's steps are looked at: in the middle of equal parts."""
    total, graded = settings.sampling_steps, settings.graded_steps
    return tuple((2 * part + 1) * total // (2 * graded) for part in range(graded))


def staggered_steps(settings: AttributionSettings) -> list[tuple[tuple[int, ...], float]]:
    """Of every path the steps that are looked at, side by side, and how far it is behind the others.

    Every part of the way is looked at by as many paths, one after the other, so that each part sees all
    prompts. The paths of one part lie between each other, from 0 to below 1 of a step.
    """
    total, graded, count = settings.sampling_steps, settings.graded_steps, settings.trajectories
    parts = -(-total // graded)
    chosen = [(2 * number + 1) * parts // (2 * count) for number in range(count)]
    found = []
    for part, those in groupby(chosen):  # they ascend
        steps = tuple(sorted({(part * graded + step) % total for step in range(graded)}))
        among = len(list(those))
        found += [(steps, (place + 0.5) / among) for place in range(among)]
    return found


def sampler_rows(settings: AttributionSettings) -> int:
    """Rows of the U-Net that a concept's paths take, or its drawn pictures; guidance takes two a step."""
    steps = settings.sampling_steps
    if settings.objective == "denoise":
        return 2 * steps * settings.pictures
    if settings.restart:
        lengths = list(range(1, steps + 1))
    elif settings.staggered:
        lengths = [graded[-1] + 1 for graded, _ in staggered_steps(settings)]
    else:
        lengths = [graded_steps(settings)[-1] + 1] * settings.trajectories
    if settings.pairing == "shifted":
        return 2 * sum(lengths) + settings.pairs
    # a matched path is looked at where it ends, and goes no further; without words, the base prompt's
    # prediction is half of guidance
    return 2 * sum(length - 1 for length in lengths) + (
        len(lengths) if settings.base_prompt == "" else settings.pairs
    )


@torch.no_grad()
def walked(
    models: Models,
    concepts: Sequence[CadConcept],
    settings: AttributionSettings,
    *,
    purpose: str,
    batch: int,
    keep: Keep = made_now,
) -> list[Pairs]:
    """The points of each concept's paths; those of all concepts share the sampler's batches.

    Args:
        models: The unedited checkpoint.
        concepts: Whose paths.
        settings: Scheme.
        purpose: Enters every seed.
        batch: Paths at a time.
        keep: Where each batch's points are kept; its name says which paths it walks.
    """
    ways = _ways(models, settings)
    paths = [
        path
        for number, concept in enumerate(concepts)
        for path in _paths(number, concept, ways, purpose, mirrors=settings.mirrors)
    ]
    # those of one length side by side, so that a batch ends together
    order = sorted(range(len(paths)), key=lambda row: -paths[row].length)
    walker = _Walker(models, concepts, settings)
    total = sum(path.length for path in paths)
    with progress.bar(total, "paths", "step") as bar, resident(models.unet):

        def work(part: slice) -> Mapping[str, Tensor]:
            rows, fresh = [(row, paths[row]) for row in order[part]], []

            def make() -> Mapping[str, Tensor]:
                fresh.append(True)
                return _packed(walker.walk(rows, bar))

            found = keep(f"{part.start}-{part.stop}", make)
            bar.update(0 if fresh else sum(path.length for _, path in rows))
            return found

        parts = in_batches(len(paths), batch, work)
    points = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    sorted_rows = sorted(
        range(len(points["path"])), key=lambda row: (int(points["path"][row]), -int(points["timestep"][row]))
    )
    owners = [paths[int(points["path"][row])].concept for row in sorted_rows]
    found = []
    for number, concept in enumerate(concepts):
        mine = [row for row, owner in zip(sorted_rows, owners, strict=True) if owner == number]
        found.append(_collected({name: one[mine] for name, one in points.items()}, paths, concept))
    return found


def _packed(points: Sequence[_Point]) -> Mapping[str, Tensor]:
    return {
        "path": torch.tensor([point.path for point in points]),
        "timestep": torch.tensor([point.timestep for point in points]),
        "noisy": torch.stack([point.noisy for point in points]),
        "target": torch.stack([point.target for point in points]),
    }


def _collected(points: Mapping[str, Tensor], paths: Sequence[_Path], concept: CadConcept) -> Pairs:
    rows = points["path"].tolist()
    numbers = {seed: place for place, seed in enumerate(dict.fromkeys(paths[row].seed for row in rows))}
    return Pairs(
        noisy=points["noisy"],
        timesteps=points["timestep"],
        target=points["target"],
        prompt=torch.tensor([paths[row].prompt for row in rows]),
        sample=torch.tensor([numbers[paths[row].seed] for row in rows]),
        prompts=concept.prompts,
    )


def _ways(models: Models, settings: AttributionSettings) -> list[_Way]:
    """The way of each path of a concept."""
    if settings.staggered:
        remaining = noise_schedule(models.scheduler).remaining.double()
        return [_between(remaining, settings.sampling_steps, *one) for one in staggered_steps(settings)]
    solver = ddim_like(models.scheduler)
    solver.set_timesteps(settings.sampling_steps)
    rungs = rungs_of(solver)
    timesteps = tuple(rung.timestep for rung in rungs)
    shares = (*(rung.noisy for rung in rungs), rungs[-1].clean)
    if settings.restart:
        grades: list[tuple[int, ...]] = [(step,) for step in range(settings.sampling_steps)]
    else:
        grades = [graded_steps(settings)] * settings.trajectories
    return [_Way(timesteps=timesteps, shares=shares, graded=graded) for graded in grades]


def _between(remaining: Tensor, steps: int, graded: tuple[int, ...], behind: float) -> _Way:
    """A path of evenly spaced timesteps, all of them a part of a step later than those of the first."""
    timesteps = tuple(int((steps - step - behind) * len(remaining) / steps) for step in range(steps))
    shares = (*(float(remaining[one]) for one in timesteps), float(remaining[0]))
    return _Way(timesteps=timesteps, shares=shares, graded=graded)


def _paths(
    number: int, concept: CadConcept, ways: Sequence[_Way], purpose: str, *, mirrors: bool
) -> list[_Path]:
    return [
        _Path(
            concept=number,
            prompt=place % len(concept.prompts),
            seed=derived_seed(concept.seed, purpose, "path", place - place % 2 if mirrors else place),
            way=way,
            mirrored=mirrors and place % 2 == 1,
        )
        for place, way in enumerate(ways)
    ]


class _Walker:
    """The sampler with guidance, looking at what it passes."""

    def __init__(self, models: Models, concepts: Sequence[CadConcept], settings: AttributionSettings) -> None:
        self.models, self.settings = models, settings
        self.device, self.dtype = device_and_dtype(models.unet)
        self.readings = [read_prompts(models, concept.prompts) for concept in concepts]
        self.without = read_without(models, "")
        # no words are what guidance leads away from: of SDXL zeros, not an empty prompt as it is read
        prompt = settings.base_prompt
        self.base = read_prompts(models, [prompt]) if prompt else self.without
        same = torch.equal(self.base.features, self.without.features)
        # the sampler's own second half is then the base prompt's prediction, too
        self.shared = same and settings.pairing == "matched"
        self.shape = latent_shape(models)
        self.predicts = noise_schedule(models.scheduler).predicts

    def walk(self, paths: Sequence[tuple[int, _Path]], bar: progress.Bar) -> list[_Point]:
        """The points of some paths, the longest first."""
        noise = [torch.randn(self.shape, generator=torch.Generator().manual_seed(p.seed)) for _, p in paths]
        signs = torch.tensor([-1.0 if path.mirrored else 1.0 for _, path in paths]).view(-1, 1, 1, 1)
        latents = (signs * torch.stack(noise)).to(self.device)
        points: list[_Point] = []
        for step in range(paths[0][1].length):
            live = [(row, path) for row, path in paths if path.length > step]
            latents = latents[: len(live)]
            seen = latents.to(self.dtype)
            timesteps = torch.tensor([path.way.timesteps[step] for _, path in live], device=self.device)
            # a path that ends here has no next point, and needs no prediction to go there
            matched = self.settings.pairing == "matched"
            going = [path for _, path in live if path.length > step + 1 or not matched]
            due = [place for place, (_, path) in enumerate(live) if step in path.way.graded]
            plain, conditional = self._both(seen, timesteps, going)
            if matched:
                target = plain if self.shared else self._base(seen, timesteps, due)
                points += self._points(live, due, timesteps, seen, target)
            if not going:
                bar.update(len(live))
                break
            plain = plain[: len(going)]
            guided = plain + self.settings.guidance * (conditional - plain)
            shares = [path.way.shares[step : step + 2] for path in going]
            latents = self._stepped(latents[: len(going)], guided.float(), shares)
            if not matched:
                seen = latents.to(self.dtype)
                points += self._points(live, due, timesteps, seen, self._base(seen, timesteps, due))
            bar.update(len(live))
        return points

    def _stepped(self, latents: Tensor, predicted: Tensor, shares: Sequence[tuple[float, ...]]) -> Tensor:
        """One step of DDIM, each row between shares of its own (Song et al. 2021, eq. 12 with η = 0)."""
        noisy, clean = (
            torch.tensor(column, dtype=torch.float64, device=latents.device).view(-1, 1, 1, 1)
            for column in zip(*shares, strict=True)
        )
        left, gone = noisy.sqrt().float(), (1 - noisy).sqrt().float()
        if self.predicts == "v_prediction":  # nothing is divided: the first share may be nothing
            picture, noise = left * latents - gone * predicted, left * predicted + gone * latents
        else:
            picture, noise = (latents - gone * predicted) / left, predicted
        return clean.sqrt().float() * picture + (1 - clean).sqrt().float() * noise

    def _both(self, latents: Tensor, timesteps: Tensor, going: Sequence[_Path]) -> tuple[Tensor, Tensor]:
        """Without a prompt, of all rows if that is looked at, and with the prompts of those going on."""
        rows = len(latents) if self.shared else len(going)
        if not rows:
            return latents[:0], latents[:0]
        readings = [self.without.to(latents).repeated(rows)]
        if going:
            readings.append(self._text(going, latents))
        noisy, when = (torch.cat([one[:rows], one[: len(going)]]) for one in (latents, timesteps))
        plain, conditional = predict_under(self.models, noisy, when, together(readings)).split(
            [rows, len(going)]
        )
        return plain, conditional

    def _text(self, paths: Sequence[_Path], like: Tensor) -> Reading:
        return together([self.readings[path.concept].select([path.prompt]).to(like) for path in paths])

    def _predict(self, latents: Tensor, timesteps: Tensor, *readings: Reading) -> Tensor:
        noisy, when = (torch.cat([one] * len(readings)) for one in (latents, timesteps))
        return predict_under(self.models, noisy, when, together(readings))

    def _base(self, latents: Tensor, timesteps: Tensor, due: Sequence[int]) -> Tensor:
        """The base prompt's predictions; nothing where none is due."""
        found = torch.zeros_like(latents)
        if due:
            rows = list(due)
            base = self.base.to(latents).repeated(len(rows))
            found[rows] = self._predict(latents[rows], timesteps[rows], base)
        return found

    @staticmethod
    def _points(
        live: Sequence[tuple[int, _Path]],
        due: Sequence[int],
        timesteps: Tensor,
        noisy: Tensor,
        target: Tensor,
    ) -> list[_Point]:
        # copies: the batch's own tensors go
        return [
            _Point(
                path=live[place][0],
                timestep=int(timesteps[place]),
                noisy=noisy[place].float().cpu().clone(),
                target=target[place].float().cpu().clone(),
            )
            for place in due
        ]
