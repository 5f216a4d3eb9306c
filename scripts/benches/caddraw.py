"""How often phrases' pictures show what they name, with masks in the U-Net or without."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from painters import painters_of
from torch import Tensor

from surgery.anatomy import standing_in, weights_digest
from surgery.diffusion import at_once, in_order
from surgery.evaluate import Sampling
from surgery.evaluate.pictures import Painter, Pictures
from surgery.judge import Judge, Trait
from surgery.methods.cad.masks import ComponentMask, masked
from surgery.progress import track
from surgery.store import Store


@dataclass(frozen=True, kw_only=True)
class Task:
    """A phrase, the prompts that name it, and how many pictures of each."""

    phrase: str
    templates: tuple[str, ...]
    samples: int

    @property
    def pictures(self) -> int:
        return len(self.templates) * self.samples


@dataclass(frozen=True, kw_only=True)
class Easel:
    """Draws and judges; the U-Net that draws has its own type, edits are made in float32."""

    options: argparse.Namespace
    judge: Judge
    store: Store

    def shares(self, models: Any, tasks: Sequence[Task], *, kept: bool = False) -> list[float]:
        """The share of each phrase's pictures that show it; with ``kept`` they are stored."""
        options = self.options
        painters = painters_of(models, getattr(torch, options.dtype))
        weights = f"{weights_digest(models.unet)} {weights_digest(models.text_encoder)}" if kept else ""

        def drawn(task: Task) -> Pictures:
            sampling = Sampling(
                templates=task.templates,
                samples=task.samples,
                seed=options.seed,
                steps=options.steps,
                batch=options.batch,
            )
            store = self.store if kept else None
            painter = Painter(models=painters, sampling=sampling, store=store, weights=weights)
            return painter.pictures(task.phrase, task.templates)

        workers = at_once(painters.unet, len(tasks))
        pictures = track(in_order(drawn, tasks, workers), "pictures", unit="phrase", total=len(tasks))
        return [
            float(self.judge.score(one).shows(Trait(task.phrase)).mean())
            for task, one in zip(tasks, pictures, strict=True)
        ]

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
