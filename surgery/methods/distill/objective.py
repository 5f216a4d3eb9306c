"""What the weights are pulled to: a scaled concept, and all else as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from surgery.diffusion import Models, generator_for
from surgery.methods.distill.points import Points, Texts, drawn_points, predicted
from surgery.methods.distill.settings import DistillConcept, DistillSettings
from surgery.methods.training import State


class DistillObjective:
    """‖e(x_t, c) - target‖² + λ₀ ‖e(x_t, ∅) - e₀‖² + λ_d ‖e(x_t, d) - e_d‖², means over pixels.

    Source: section 6.4 of the study; arXiv 2303.07345, eq. 5 with ω = -η.
    """

    def __init__(
        self,
        models: Models,
        concepts: Sequence[DistillConcept],
        texts: Texts,
        settings: DistillSettings,
        absent: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.models, self.concepts, self.texts = models, concepts, texts
        self.settings, self.absent = settings, absent

    def losses(self, step: int, state: State) -> Iterator[Tensor]:
        """See ``surgery.methods.training.Objective``."""
        settings = self.settings
        if step % settings.refresh == 0 or not state.carried:
            number = step // settings.refresh
            points = drawn_points(self.models, self.concepts, self.texts, settings, self.absent, number)
            state.carried = points.tensors()
        points = Points(**state.carried)
        generator = generator_for(settings.seed, "distilled batch", step)
        rows = torch.randperm(len(points), generator=generator)[: settings.batch]
        yield self.loss(points.select(rows))

    def loss(self, points: Points) -> Tensor:
        """The mean over some points."""
        settings = self.settings
        wordless = settings.null_weight > 0
        found = predicted(
            self.models,
            self.texts,
            points.noisy,
            points.timesteps,
            points.prompt,
            points.other,
            wordless=wordless,
        )
        truths = [(settings.null_weight, points.without)] if wordless else []
        truths += [(1.0, points.target), (settings.preserve_weight, points.preserved)]
        parts: list[Any] = [
            weight * (mine - truth.to(mine)).square().mean()
            for mine, (weight, truth) in zip(found, truths, strict=False)
        ]
        return torch.stack(parts).sum()

    def held_out(self) -> float | None:
        """Nothing is."""
        return None
