"""Resumable training: what a stage has reached, saved often, written beside and renamed into place."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
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


def steps(stage: str, first: int, total: int, started: float, log_every: int) -> Iterator[tuple[int, bool]]:
    """Counts steps from `first`; the second value says when to log."""
    for step in range(first, total):
        yield step, step % log_every == log_every - 1 or step == total - 1


def report(stage: str, step: int, total: int, started: float, first: int, **values: float) -> None:
    elapsed = time.monotonic() - started
    left = elapsed / max(1, step + 1 - first) * (total - step - 1)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    print(f"{stage} {step + 1}/{total}  {shown}  {elapsed:.0f} s, {left:.0f} s left", flush=True)


def cosine(step: int, total: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then half a cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
