"""Many independent descents as one: an offset per concept under one Adam, each stopping by itself."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery import progress
from surgery.methods.emcid.settings import OffsetSettings

Losses: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
"""(step, offsets of the active concepts, their indices) → one loss for each of them."""

# A running mean of fewer steps follows Adam's own swing rather than progress.
_SHORTEST_WINDOW = 5
_ON_CLAMP = 1 - 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Where the descents ended.

    ``first`` and ``last`` are means of the loss over the first and last window of steps (the first and
    last loss where there was one window at most); ``settled`` says
    that the loss stood still before the steps ran out or the rate fell to nothing with them, ``clamped``
    that the offset ended at its largest length, ``finite`` that no loss was NaN or infinite.
    """

    offsets: Float[Tensor, "concepts width"]
    first: Float[Tensor, "concepts"]
    last: Float[Tensor, "concepts"]
    steps: Int[Tensor, "concepts"]
    settled: Tensor
    clamped: Tensor
    finite: Tensor


class _Watch:
    """The running mean of one concept's loss, and whether it still falls."""

    def __init__(self, window: int, tolerance: float, patience: int | None) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.tolerance, self.patience = tolerance, patience
        self.first, self.opening, self.best, self.since = math.nan, math.nan, math.inf, 0
        self.steps, self.settled = 0, False

    def see(self, loss: float) -> bool:
        """Count one step; True when the concept is done."""
        self.recent.append(loss)
        self.steps += 1
        window = self.recent.maxlen or 1
        if self.steps == 1:
            self.first = loss
        if self.steps < window:
            return False
        mean = self.mean
        if self.steps == window:
            self.opening = mean
        else:
            self.first = self.opening
        if mean < self.best * (1 - self.tolerance):
            self.best, self.since = mean, 0
        else:
            self.since += 1
        self.settled = self.patience is not None and self.since >= self.patience
        return self.settled

    @property
    def mean(self) -> float:
        return sum(self.recent) / len(self.recent)

    @property
    def last(self) -> float:
        """The mean of the last window, or the last loss where no window but the first was full."""
        if not self.recent:
            return math.nan
        return self.mean if self.steps > len(self.recent) else self.recent[-1]


def descend(
    losses: Losses,
    source: Float[Tensor, "concepts width"],
    settings: OffsetSettings,
    cycle: int = 1,
    parts: Sequence[int] | None = None,
) -> Descent:
    """Offsets that lower each concept's loss, from zero, each inside its ball ‖δ‖ ≤ clamp · ‖source‖.

    Concepts do not see each other: the losses' sum has independent gradients, Adam works element by
    element, and a concept that stands still, or whose loss is not finite, leaves the batch with what it
    has.

    Args:
        losses: The losses of some concepts at a step.
        source: The unedited streams at the subjects, which scale the clamp and the relative rate.
        settings: Steps, rate, clamp, tolerance, patience.
        parts: Widths of the parts of ``source``, one for each text encoder: each has a ball and a rate of its
            own. One part when left out.
        cycle: Steps after which the losses see the same noise again; running means span whole cycles.

    Source: 1.4 of the study. The early stop and the relative rate are ours; with patience None and rate
    "absolute" it is the released loop.
    """
    watches = [
        _Watch(max(cycle, _SHORTEST_WINDOW), settings.tolerance, settings.patience)
        for _ in range(len(source))
    ]
    widths = list(parts or [source.shape[1]])
    length = _lengths(source, widths)
    scale = torch.ones_like(source)
    if settings.rate == "relative":
        roots = [torch.full((width,), math.sqrt(width), device=source.device) for width in widths]
        scale = length / torch.cat(roots)
    scaled = torch.zeros_like(source, requires_grad=True)
    adam = torch.optim.Adam([scaled], lr=settings.learning_rate)
    active = torch.arange(len(source), device=source.device)
    finite = torch.ones(len(source), dtype=torch.bool)
    for step in progress.track(range(settings.steps), "offsets", unit="step"):
        adam.param_groups[0]["lr"] = settings.learning_rate * _rate_left(step, settings)
        found = losses(step, (scaled * scale)[active], active)
        values = found.detach().cpu().double()
        sound = torch.isfinite(values)
        finite[active.cpu()[~sound]] = False
        (scaled.grad,) = torch.autograd.grad(found[sound.to(found.device)].sum(), [scaled])
        kept = scaled.detach().clone()
        adam.step()
        _settle(scaled, kept, active[sound.to(active.device)], scale, settings.clamp * length, widths)
        done = [not ok or watches[index].see(value) for index, value, ok in _rows(active, values, sound)]
        active = active[~torch.tensor(done, device=active.device)]
        if len(active) == 0:
            break
    offsets = (scaled * scale).detach()
    return Descent(
        offsets=offsets,
        first=torch.tensor([watch.first for watch in watches]),
        last=torch.tensor([watch.last for watch in watches]),
        steps=torch.tensor([watch.steps for watch in watches]),
        settled=torch.tensor([watch.settled or _ran_out(watch, settings) for watch in watches]),
        clamped=(_lengths(offsets, widths) > _ON_CLAMP * settings.clamp * length).any(1).cpu(),
        finite=finite,
    )


def _ran_out(watch: _Watch, settings: OffsetSettings) -> bool:
    """Whether the learning rate fell to nothing, so that more steps would not have moved the offset."""
    return settings.decay == "cosine" and watch.steps == settings.steps


def _rate_left(step: int, settings: OffsetSettings) -> float:
    """The share of the learning rate that is left at a step."""
    if settings.decay == "none":
        return 1.0
    return (1 + math.cos(math.pi * step / settings.steps)) / 2


def _rows(active: Tensor, values: Tensor, sound: Tensor) -> list[tuple[int, float, bool]]:
    return list(zip(active.tolist(), values.tolist(), sound.tolist(), strict=True))


def _lengths(vectors: Tensor, widths: list[int]) -> Tensor:
    """For each element the length of the part that it belongs to."""
    return torch.cat([part.norm(dim=1, keepdim=True).expand_as(part) for part in vectors.split(widths, 1)], 1)


@torch.no_grad()
def _settle(
    scaled: Tensor, kept: Tensor, moving: Tensor, scale: Tensor, largest: Tensor, widths: list[int]
) -> None:
    """Put resting rows back (Adam's momentum would carry them on) and moving ones onto their balls."""
    stepped = scaled[moving]
    length = _lengths(stepped * scale[moving], widths)
    shrunk = stepped * (largest[moving] / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(max=1.0)
    scaled.copy_(kept)
    scaled[moving] = shrunk
