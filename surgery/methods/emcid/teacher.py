"""What the U-Net is asked and what it should answer: from a bank prepared once, or drawn afresh each step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery import progress
from surgery.diffusion import NoiseSchedule, device_and_dtype, generator_for
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.pictures import Clean, images_of
from surgery.methods.emcid.settings import OffsetSettings
from surgery.methods.emcid.views import Rows

# Without a picture x_t is all noise, which is like a noised picture only late in the schedule.
_LATE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Noisy latents at some timesteps, and the right answers."""

    noisy: Float[Tensor, "rows channels height width"]
    timesteps: Int[Tensor, "rows"]
    answer: Float[Tensor, "rows channels height width"]


class Teacher(Protocol):
    """Gives the questions of a step."""

    @property
    def cycle(self) -> int:
        """Steps after which the same questions come again; 1 where they never do."""

    def ask(self, step: int, rows: Int[Tensor, "chosen"]) -> Question:
        """The questions of one step for some of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """All that a teacher needs: the frozen U-Net, the schedule, pictures and the destination's features."""

    models: EmcidModels
    schedule: NoiseSchedule
    clean: Clean
    rows: Rows
    goal: Float[Tensor, "rows tokens width"]
    settings: OffsetSettings
    goal_pooled: Float[Tensor, "rows pooled"] | None = None

    @property
    def device(self) -> torch.device:
        """Where the U-Net lies."""
        return device_and_dtype(self.models.unet)[0]

    def range_of(self, row: int) -> tuple[int, int]:
        """First and last timestep of a row."""
        last = min(self.settings.timesteps[1], len(self.schedule.remaining) - 1)
        first = min(self.settings.timesteps[0], last)
        if images_of(self.rows.views[row], self.settings) == "none":
            first = max(first, min(last, int(_LATE * len(self.schedule.remaining))))
        return first, last

    def noisy(self, rows: Tensor, timesteps: Tensor, noise: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of some rows, and x₀ with the VAE's posterior sampled by ``jitter``."""
        picked = rows.cpu()
        clean = self.clean.mean[picked] + self.clean.deviation[picked] * jitter
        return self.schedule.noisy(clean, noise, timesteps), clean

    @torch.no_grad()
    def question(self, rows: Tensor, timesteps: Tensor, noise: Tensor, jitter: Tensor) -> Question:
        """A question with its answer: the teacher's, or the truth for rows that only pictures teach."""
        noisy, clean = self.noisy(rows, timesteps, noise, jitter)
        noisy, timesteps = noisy.to(self.device), timesteps.to(self.device)
        answer = self.schedule.truth(clean, noise, timesteps.cpu()).to(self.device)
        if self.settings.target == "teacher":
            read = None if self.rows.goal_read is None else self.rows.goal_read[rows]
            pooled = None if self.goal_pooled is None else self.goal_pooled[rows]
            added = self.models.added(pooled, noisy)
            told = predict(self.models.unet, noisy, timesteps, self.goal[rows], read, added)
            answer = torch.where(self.rows.taught[rows][:, None, None, None], told, answer)
        return Question(noisy=noisy, timesteps=timesteps, answer=answer)


def predict(
    unet: Any,
    noisy: Float[Tensor, "rows channels height width"],
    timesteps: Int[Tensor, "rows"],
    text: Float[Tensor, "rows tokens width"],
    read: Tensor | None,
    added: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "rows channels height width"]:
    """The U-Net's answer in float32; ``read`` marks the tokens that it may see, ``added`` is for SDXL's."""
    dtype = next(unet.parameters()).dtype
    more = {} if added is None else {"added_cond_kwargs": {key: one.to(dtype) for key, one in added.items()}}
    answer = unet(
        noisy.to(dtype),
        timesteps,
        encoder_hidden_states=text.to(dtype),
        encoder_attention_mask=None if read is None else read.long(),
        return_dict=False,
        **more,
    )[0]
    return torch.as_tensor(answer).float()


class FreshTeacher:
    """New timesteps, noise and posterior samples at every step, the teacher asked each time (as released)."""

    cycle = 1

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        owners = {view.owner: view.concept for view in lesson.rows.views}
        self._generators = {
            owner: generator_for(concept.edit.seed, "steps") for owner, concept in owners.items()
        }

    def ask(self, step: int, rows: Int[Tensor, "chosen"]) -> Question:
        """The questions of one step; a concept's draws are its own, whoever else is in the batch."""
        shape = self.lesson.clean.mean.shape[1:]
        timesteps, noise, jitter = [], [], []
        for row in rows.tolist():
            generator = self._generators[self.lesson.rows.views[row].owner]
            first, last = self.lesson.range_of(row)
            jitter.append(torch.randn(shape, generator=generator))
            noise.append(torch.randn(shape, generator=generator))
            timesteps.append(torch.randint(first, last + 1, (), generator=generator))
        return self.lesson.question(rows, torch.stack(timesteps), torch.stack(noise), torch.stack(jitter))


class BankTeacher:
    """A few questions for each row, asked in turn; the teacher answers all of them once, beforehand.

    The timesteps of a row are spread evenly over their range (one in each of ``bank_size`` strata), and noise
    comes in pairs of opposite sign: both lower the variance of the loss for the same number of questions.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self._size = lesson.settings.bank_size
        self.cycle = self._size * lesson.rows.round(lesson.settings.rows_per_step)
        everyone = torch.arange(len(lesson.rows.views), device=lesson.rows.owner.device)
        timesteps, noise, jitter = self._draws()
        questions = [
            lesson.question(everyone, timesteps[:, place], noise[:, place], jitter[:, place])
            for place in progress.track(range(self._size), "teacher", unit="question")
        ]
        self._noisy = torch.stack([question.noisy for question in questions])
        self._timesteps = torch.stack([question.timesteps for question in questions])
        self._answers = torch.stack([question.answer for question in questions])
        # rows of one concept start apart, so that a step sees different timesteps
        self._start = lesson.rows.number * (self._size // lesson.rows.count).clamp_min(1)

    def ask(self, step: int, rows: Int[Tensor, "chosen"]) -> Question:
        """The questions that are due."""
        turn = self.lesson.rows.turn(step, self.lesson.settings.rows_per_step)
        place = (turn + self._start)[rows].to(self._noisy.device) % self._size
        chosen = rows.to(place.device)
        return Question(
            noisy=self._noisy[place, chosen],
            timesteps=self._timesteps[place, chosen],
            answer=self._answers[place, chosen],
        )

    def _draws(self) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.lesson.clean.mean.shape[1:]
        timesteps, noise, jitter = [], [], []
        for row, view in enumerate(self.lesson.rows.views):
            generator = generator_for(view.concept.edit.seed, "bank", view.number)
            timesteps.append(_strata(*self.lesson.range_of(row), self._size, generator))
            noise.append(_opposites(self._size, shape, generator))
            jitter.append(torch.randn((self._size, *shape), generator=generator))
        return torch.stack(timesteps), torch.stack(noise), torch.stack(jitter)


def _strata(first: int, last: int, count: int, generator: torch.Generator) -> Tensor:
    places = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (first + places * (last - first + 1)).long().clamp(max=last)


def _opposites(count: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
    half = torch.randn(((count + 1) // 2, *shape), generator=generator)
    return torch.stack([half, -half], 1).flatten(0, 1)[:count]


def teacher_of(lesson: Lesson) -> Teacher:
    """The teacher that the settings ask for."""
    return FreshTeacher(lesson) if lesson.settings.bank_size == 0 else BankTeacher(lesson)
