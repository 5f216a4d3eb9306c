"""How often phrases' pictures show what they name, with masks in the U-Net or without."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from painters import painters_of
from torch import Tensor

from surgery.anatomy import standing_in, weights_digest
from surgery.diffusion import at_once, in_order, sample
from surgery.evaluate.pictures import own_seed
from surgery.judge import Judge, Trait
from surgery.methods.cad.masks import ComponentMask, masked
from surgery.progress import track


@dataclass(frozen=True, kw_only=True)
class Task:
    """A phrase, the prompts that name it, and how many pictures of each."""

    phrase: str
    templates: tuple[str, ...]
    samples: int

    @property
    def pictures(self) -> int:
        return len(self.templates) * self.samples

    def asked(self, seed: int) -> Iterator[tuple[str, int, str]]:
        """Prompt, seed and phrase of each picture, all templates before the second picture of any."""
        for number in range(self.samples):
            for template in self.templates:
                prompt = template.replace("{}", self.phrase)
                yield prompt, own_seed(seed, prompt, number), self.phrase


@dataclass(frozen=True, kw_only=True)
class Easel:
    """Draws and judges; pictures of different phrases share batches, and every core has one."""

    options: argparse.Namespace
    judge: Judge
    _known: dict[tuple[str, Task], float] = field(default_factory=dict)

    def shares(self, models: Any, tasks: Sequence[Task], *, kept: bool = False) -> list[float]:
        """The share of each phrase's pictures that show it; with ``kept`` none is drawn twice."""
        weights = f"{weights_digest(models.unet)} {weights_digest(models.text_encoder)}" if kept else ""
        new = [task for task in tasks if not kept or (weights, task) not in self._known]
        asked = [one for task in new for one in task.asked(self.options.seed)]
        hits = iter(self._hits(models, asked))
        found = {task: float(np.mean([next(hits) for _ in range(task.pictures)])) for task in new}
        if kept:
            self._known.update({(weights, task): share for task, share in found.items()})
            found = {task: self._known[weights, task] for task in tasks}
        return [found[task] for task in tasks]

    def _hits(self, models: Any, asked: Sequence[tuple[str, int, str]]) -> list[bool]:
        if not asked:
            return []
        options = self.options
        painters = painters_of(models, getattr(torch, options.dtype))
        workers = at_once(painters.unet, len(asked))
        size = min(options.batch, -(-len(asked) // workers))
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]

        def drawn(part: Sequence[tuple[str, int, str]]) -> list[bool]:
            prompts, seeds, phrases = (list(column) for column in zip(*part, strict=True))
            pictures = sample(
                painters, prompts, seeds, steps=options.steps, batch=len(part), progress=False, halve=False
            )
            seen = self.judge.score(pictures)
            return [bool(seen.shows(Trait(name))[place]) for place, name in enumerate(phrases)]

        told = track(in_order(drawn, parts, workers), "pictures", unit="batch", total=len(parts))
        return [hit for part in told for hit in part]

    def masked(
        self,
        models: Any,
        weights: Mapping[str, Tensor],
        mask: ComponentMask,
        strength: float,
        tasks: Sequence[Task],
    ) -> list[float]:
        """The same with a share of the masked weights taken away."""
        changed = {name: masked(weights[name], places, strength) for name, places in mask.places.items()}
        with standing_in(models, changed):
            return self.shares(models, tasks)

    def gone(
        self,
        models: Any,
        weights: Mapping[str, Tensor],
        mask: ComponentMask,
        strength: float,
        task: Task,
        level: float,
    ) -> bool:
        """Whether no more than a share of a task's pictures shows the concept; soon told where many do."""
        asked = list(task.asked(self.options.seed))
        most, few = int(level * len(asked)), -(-len(asked) * 2 // 5)
        changed = {name: masked(weights[name], places, strength) for name, places in mask.places.items()}
        with standing_in(models, changed):
            hits = sum(self._hits(models, asked[:few]))
            if hits <= most:
                hits += sum(self._hits(models, asked[few:]))
        return hits <= most
