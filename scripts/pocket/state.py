"""Resumable training: what a stage has reached, saved often, written beside and renamed into place."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Stage:
    """The saved state of one training stage under `folder`: modules, optimiser, average, step."""

    def __init__(self, folder: Path, name: str, every_s: float = 60.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._path = folder / f"{name}.pt"
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        if not self._path.is_file():
            return None
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        return state

    def save(self, state: dict[str, Any], *, force: bool = False) -> None:
        if not force and time.monotonic() - self._saved_at < self._every_s:
            return
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._path)
        self._saved_at = time.monotonic()


class Average:
    """Exponential moving average of a module's tensors, in float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        floating = [name for name, t in self.tensors.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.tensors[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                tensor.copy_(current[name])


class Loop:
    """The steps of a stage from where it was left: loads what was saved, counts, reports and saves.

    `modules` are saved under their names; the trained one is called `net`. A finished checkpoint that became
    the state (`adopt`) has no optimiser and none of the modules that training throws away.
    """

    def __init__(
        self,
        stage: Stage,
        total: int,
        optimiser: torch.optim.Optimizer,
        modules: Mapping[str, nn.Module],
        average: Average | None = None,
        *,
        log_every: int = 50,
    ) -> None:
        self._stage, self._total, self._log_every = stage, total, log_every
        self._optimiser, self._modules, self._average = optimiser, modules, average
        self._started = time.monotonic()
        self.first = 0
        saved = stage.load()
        if saved is None:
            return
        for name in modules.keys() & saved.keys():
            modules[name].load_state_dict(saved[name])
        if "optimiser" in saved:
            optimiser.load_state_dict(saved["optimiser"])
        if average is not None:
            average.tensors = saved["average"]
        self.first = int(saved["step"])

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self._total))

    def is_last(self, step: int) -> bool:
        return step + 1 == self._total

    def reports(self, step: int) -> bool:
        """Whether this step is one of those that say how it goes."""
        return step % self._log_every == self._log_every - 1 or self.is_last(step)

    def set_rate(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def report(self, step: int, **values: float) -> None:
        report(self._stage.name, step + 1, self._total, self._started, begun=self.first, **values)

    def save(self, step: int, **facts: object) -> None:
        """Every minute or two, and after the last step."""
        state = {name: module.state_dict() for name, module in self._modules.items()}
        averages = {} if self._average is None else {"average": self._average.tensors}
        whole = {**state, **averages, "optimiser": self._optimiser.state_dict(), "step": step + 1, **facts}
        self._stage.save(whole, force=self.is_last(step))


def report(name: str, done: int, total: int, started: float, begun: int = 0, **values: float) -> None:
    """A line of progress; `begun` of the `done` were done before `started`."""
    elapsed = time.monotonic() - started
    left = elapsed / max(1, done - begun) * (total - done)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
    print(f"{name} {done}/{total}  {shown}  {elapsed:.0f} s, {left:.0f} s left", flush=True)


def cosine(step: int, total: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then half a cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
