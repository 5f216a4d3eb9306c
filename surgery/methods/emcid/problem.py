"""Stage I as numbers: the losses of some concepts at their offsets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.anatomy import text_stack
from surgery.diffusion import device_and_dtype
from surgery.methods.emcid.metric import cross_attention_metric, gathered, token_distance
from surgery.methods.emcid.models import EmcidModels, noise_schedule
from surgery.methods.emcid.nouns import Concept
from surgery.methods.emcid.pictures import clean_latents
from surgery.methods.emcid.settings import OffsetSettings
from surgery.methods.emcid.tail import Tail, encode, pooled, tail_of
from surgery.methods.emcid.teacher import Lesson, Teacher, predict, teacher_of
from surgery.methods.emcid.views import Rows, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A batch of concepts with everything that does not depend on their offsets worked out.

    ``source`` is each concept's unedited stream at its first prompt's subject. ``goal_pooled`` and
    ``goal_tokens`` are what the text losses aim at.
    """

    models: EmcidModels
    settings: OffsetSettings
    rows: Rows
    tail: Tail
    source: Float[Tensor, "concepts width"]
    goal_pooled: Float[Tensor, "rows width"]
    goal_tokens: Float[Tensor, "rows pairs width"] | None
    metric: Float[Tensor, "width width"] | None
    teacher: Teacher | None

    @property
    def cycle(self) -> int:
        """Steps after which the same rows are asked the same questions."""
        if self.teacher is None:
            return self.rows.round(self.settings.rows_per_step)
        return self.teacher.cycle

    def losses(
        self, step: int, offsets: Float[Tensor, "active width"], active: Int[Tensor, "active"]
    ) -> Float[Tensor, "active"]:
        """L = L_noise + w L_text + p ‖δ‖ / ‖v‖² of each active concept, the rows that are due averaged.

        The noise's part is missing in the first ``text_steps``.

        Source: 1.4 of the study.
        """
        place = torch.full((len(self.source),), -1, device=active.device)
        place[active] = torch.arange(len(active), device=active.device)
        due = self.rows.due(step, self.settings.rows_per_step)
        rows = torch.nonzero((place[self.rows.owner] >= 0) & due)[:, 0]
        owner = place[self.rows.owner[rows]]
        losses = self._row_losses(step, offsets[owner], rows)
        total = torch.zeros(len(active), device=losses.device).index_add(0, owner, losses)
        total = total / torch.bincount(owner, minlength=len(active))
        length = self.source[active].norm(dim=1)
        penalty: Tensor = self.settings.norm_penalty * offsets.norm(dim=1) / length.square()
        return total + penalty

    def _row_losses(self, step: int, offsets: Tensor, rows: Tensor) -> Tensor:
        settings = self.settings
        tail = self.tail.select(rows)
        if settings.mode == "text" and settings.metric == "pooled":
            return settings.text_weight * self._pooled_loss(tail.pooled(offsets), rows)
        features = tail.features(offsets)
        losses = torch.zeros(len(rows), device=features.device)
        if settings.mode != "noise":
            losses = losses + settings.text_weight * self._text_loss(features, rows)
        if self.teacher is not None and (settings.mode != "both" or step >= settings.text_steps):
            losses = losses + self._noise_loss(self.teacher, step, features, rows)
        return losses

    def _text_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        if self.metric is None or self.goal_tokens is None:
            return self._pooled_loss(pooled(features, self.rows.source.eos[rows]), rows)
        alignment = self.rows.alignment.select(rows)
        distance = token_distance(features, self.goal_tokens[rows], alignment, self.metric)
        return distance * self.rows.taught[rows]

    def _pooled_loss(self, found: Tensor, rows: Tensor) -> Tensor:
        return (found - self.goal_pooled[rows]).square().mean(1) * self.rows.taught[rows]

    def _noise_loss(self, teacher: Teacher, step: int, features: Tensor, rows: Tensor) -> Tensor:
        question = teacher.ask(step, rows)
        read = None if self.rows.source_read is None else self.rows.source_read[rows]
        text = features.to(question.noisy.device)
        told = predict(self.models.unet, question.noisy, question.timesteps, text, read)
        return (told - question.answer).square().flatten(1).mean(1).to(features.device)


def problem_of(
    models: EmcidModels, concepts: tuple[Concept, ...], settings: OffsetSettings, layer: int
) -> Problem:
    """The problem of a batch: prompts encoded up to the insertion point, pictures and teacher prepared."""
    stack = text_stack(models.text_encoder)
    rows = rows_of(
        concepts,
        settings,
        positions=stack.positions,
        pad=models.tokenizer.pad_token_id,
        device=stack.device,
    )
    tail = tail_of(stack, rows.source, layer)
    goal = encode(stack, rows.goal)
    by_tokens = settings.mode != "noise" and settings.metric == "cross_attention"
    first = torch.tensor(
        [row for row, view in enumerate(rows.views) if view.number == 0], device=stack.device
    )
    return Problem(
        models=models,
        settings=settings,
        rows=rows,
        tail=tail,
        source=tail.source[first],
        goal_pooled=pooled(goal, rows.goal.eos),
        goal_tokens=gathered(goal, rows.alignment.goal) if by_tokens else None,
        metric=cross_attention_metric(models.unet, stack.width).to(stack.device) if by_tokens else None,
        teacher=None if settings.mode == "text" else _teacher(models, settings, rows, goal),
    )


def _teacher(models: EmcidModels, settings: OffsetSettings, rows: Rows, goal: Tensor) -> Teacher:
    device, _ = device_and_dtype(models.unet)
    lesson = Lesson(
        models=models,
        schedule=noise_schedule(models.scheduler),
        clean=clean_latents(models, rows.views, settings),
        rows=rows,
        goal=goal.to(device),
        settings=settings,
    )
    return teacher_of(lesson)
