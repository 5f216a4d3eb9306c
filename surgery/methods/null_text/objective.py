"""What a look is learned by: the noise in noisy pictures, predicted without a word."""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from surgery.diffusion import Models, device_and_dtype, generator_for, noise_schedule, predict_under
from surgery.diffusion.conditions import read_without
from surgery.methods.null_text.pictures import PictureSet, split_off
from surgery.methods.null_text.settings import TrainSettings
from surgery.methods.training import Company, State

_HELD_OUT: Final = 64
"""Pictures, at most, that the held-out loss looks at, each at so many timesteps:"""
_LEVELS: Final = 8


class LookObjective:
    """The noise in noisy pictures, predicted under the null context."""

    def __init__(
        self, models: Models, pictures: PictureSet, settings: TrainSettings, company: Company | None = None
    ) -> None:
        self.models, self.pictures, self.settings, self.company = models, pictures, settings, company
        self.device, self.dtype = device_and_dtype(models.unet)
        self.null = read_without(models, "")
        self.schedule = noise_schedule(models.scheduler)
        self.rows, self.held = split_off(pictures, settings.held_out)

    def losses(self, step: int, state: State) -> Iterator[Tensor]:
        """See ``surgery.methods.training.Objective``."""
        for part in self._shares(self.batch(step)):
            yield self._loss(*part) / self.settings.batch

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, noise and timesteps of one update."""
        settings = self.settings
        generator = generator_for(settings.seed, "update", step)
        count = len(self.rows)
        places = [divmod(step * settings.batch + number, count) for number in range(settings.batch)]
        orders = {
            epoch: torch.randperm(count, generator=generator_for(settings.seed, "order", epoch))
            for epoch in {epoch for epoch, _ in places}
        }
        rows = self.rows[torch.stack([orders[epoch][place] for epoch, place in places])]
        turned = torch.rand(len(rows), generator=generator) < (0.5 if settings.mirrored else 0.0)
        shape = (len(rows), *self.pictures.mean.shape[1:])
        jitter, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        timesteps = torch.randint(0, len(self.schedule.remaining), (len(rows),), generator=generator)
        return self.pictures.drawn(rows, turned, jitter), noise, timesteps

    def held_out(self) -> float | None:
        """The mean loss at fixed noise, timesteps in the middle of equal parts; None without pictures."""
        rows = self.held[:_HELD_OUT]
        if not len(rows):
            return None
        generator = generator_for(self.settings.seed, "held out")
        total = 0.0
        for step in self.schedule.spread(_LEVELS):
            noise = torch.randn((len(rows), *self.pictures.mean.shape[1:]), generator=generator)
            timesteps = torch.full((len(rows),), step)
            for start in range(0, len(rows), self.settings.micro_batch):
                part = slice(start, start + self.settings.micro_batch)
                clean = self.pictures.mean[rows[part]]
                total += float(self._loss(clean, noise[part], timesteps[part]))
        return total / (_LEVELS * len(rows))

    def _shares(self, batch: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """This process's rows of a batch, in micro-batches."""
        company = self.company
        own = slice(None) if company is None else slice(company.process_index, None, company.num_processes)
        size = self.settings.micro_batch
        mine = [one[own] for one in batch]
        for start in range(0, len(mine[0]), size):
            yield tuple(one[start : start + size] for one in mine)

    def _loss(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squares over pixels, summed over pictures."""
        noisy = self.schedule.noisy(clean, noise, timesteps).to(self.device, self.dtype)
        truth = self.schedule.truth(clean, noise, timesteps).to(self.device)
        text = self.null.to(noisy).repeated(len(noisy))
        predicted = predict_under(self.models, noisy, timesteps.to(self.device), text).float()
        return (predicted - truth).square().flatten(1).mean(1).sum()
