"""Stage I as numbers: the losses of some concepts at their offsets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.diffusion import device_and_dtype, noise_schedule
from surgery.methods.emcid.metric import cross_attention_metric, gathered, token_distance
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.nouns import Concept
from surgery.methods.emcid.pictures import clean_latents
from surgery.methods.emcid.settings import OffsetSettings
from surgery.methods.emcid.tail import Tail, read, tail_of
from surgery.methods.emcid.teacher import Lesson, Teacher, predict, teacher_of
from surgery.methods.emcid.views import Rows, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A batch of concepts with everything that does not depend on their offsets worked out.

    ``source`` is each concept's unedited stream at its first prompt's subject; of several text encoders those
    streams side by side, ``widths`` wide, and offsets alike. ``goal_pooled`` (of each encoder) and
    ``goal_tokens`` are what the text losses aim at.
    """

    models: EmcidModels
    settings: OffsetSettings
    rows: Rows
    tails: tuple[Tail, ...]
    widths: tuple[int, ...]
    source: Float[Tensor, "concepts width"]
    goal_pooled: tuple[Float[Tensor, "rows pooled"], ...]
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
        return total + self._penalty(offsets, self.source[active])

    def _penalty(self, offsets: Tensor, source: Tensor) -> Tensor:
        """The sum of p ‖δ‖ / ‖v‖² over the text encoders."""
        parts = zip(offsets.split(self.widths, 1), source.split(self.widths, 1), strict=True)
        ratios = [offset.norm(dim=1) / own.norm(dim=1).square() for offset, own in parts]
        return self.settings.norm_penalty * torch.stack(ratios).sum(0)

    def _row_losses(self, step: int, offsets: Tensor, rows: Tensor) -> Tensor:
        settings = self.settings
        tails = [tail.select(rows) for tail in self.tails]
        parts = offsets.split(self.widths, 1)
        if settings.mode == "text" and settings.metric == "pooled":
            ends = [tail.pooled(part) for tail, part in zip(tails, parts, strict=True)]
            return settings.text_weight * self._pooled_loss(ends, rows)
        found = [tail.both(part) for tail, part in zip(tails, parts, strict=True)]
        features, ends = torch.cat([one.features for one in found], -1), [one.pooled for one in found]
        losses = torch.zeros(len(rows), device=features.device)
        if settings.mode != "noise":
            losses = losses + settings.text_weight * self._text_loss(features, ends, rows)
        if self.teacher is not None and (settings.mode != "both" or step >= settings.text_steps):
            pooled = ends[-1] if len(ends) > 1 else None
            losses = losses + self._noise_loss(self.teacher, step, features, pooled, rows)
        return losses

    def _text_loss(self, features: Tensor, ends: list[Tensor], rows: Tensor) -> Tensor:
        if self.metric is None or self.goal_tokens is None:
            return self._pooled_loss(ends, rows)
        alignment = self.rows.alignment.select(rows)
        distance = token_distance(features, self.goal_tokens[rows], alignment, self.metric)
        distance = distance * self.rows.taught[rows]
        # SDXL's U-Net reads the pooled feature of its second encoder too
        return distance if len(ends) == 1 else distance + self._pooled_loss(ends, rows)

    def _pooled_loss(self, ends: list[Tensor], rows: Tensor) -> Tensor:
        """The mean over the text encoders: with a weight of 0.01 each of SDXL's has 0.005, as released."""
        losses = [
            (found - goal[rows]).square().mean(1) for found, goal in zip(ends, self.goal_pooled, strict=True)
        ]
        return torch.stack(losses).mean(0) * self.rows.taught[rows]

    def _noise_loss(
        self, teacher: Teacher, step: int, features: Tensor, pooled: Tensor | None, rows: Tensor
    ) -> Tensor:
        question = teacher.ask(step, rows)
        read = None if self.rows.source_read is None else self.rows.source_read[rows]
        text = features.to(question.noisy.device)
        pooled = None if pooled is None else pooled.to(question.noisy.device)
        added = self.models.added(pooled, question.noisy)
        told = predict(self.models.unet, question.noisy, question.timesteps, text, read, added)
        return (told - question.answer).square().flatten(1).mean(1).to(features.device)


def problem_of(
    models: EmcidModels,
    concepts: tuple[Concept, ...],
    settings: OffsetSettings,
    layer: int,
    layer_2: int | None = None,
) -> Problem:
    """The problem of a batch: prompts encoded up to the insertion point, pictures and teacher prepared.

    The offset is added behind block ``layer``, in SDXL's second text encoder behind ``layer_2``.
    """
    towers = models.towers
    stack = towers[0].stack
    each = [
        rows_of(
            concepts,
            settings,
            positions=stack.positions,
            pad=tower.tokenizer.pad_token_id,
            device=stack.device,
        )
        for tower in towers
    ]
    rows = each[0]
    layers = (layer,) if layer_2 is None else (layer, layer_2)
    tails = tuple(
        tail_of(tower.stack, own.source, last, behind=tower.behind, projection=tower.projection)
        for tower, own, last in zip(towers, each, layers, strict=True)
    )
    goals = [read(tower, own.goal) for tower, own in zip(towers, each, strict=True)]
    goal = torch.cat([one.features for one in goals], -1)
    by_tokens = settings.mode != "noise" and settings.metric == "cross_attention"
    first = torch.tensor(
        [row for row, view in enumerate(rows.views) if view.number == 0], device=stack.device
    )
    width = goal.shape[-1]
    pooled = goals[-1].pooled if len(goals) > 1 else None
    return Problem(
        models=models,
        settings=settings,
        rows=rows,
        tails=tails,
        widths=tuple(tower.stack.width for tower in towers),
        source=torch.cat([tail.source[first] for tail in tails], 1),
        goal_pooled=tuple(one.pooled for one in goals),
        goal_tokens=gathered(goal, rows.alignment.goal) if by_tokens else None,
        metric=cross_attention_metric(models.unet, width).to(stack.device) if by_tokens else None,
        teacher=None if settings.mode == "text" else _teacher(models, settings, rows, goal, pooled),
    )


def _teacher(
    models: EmcidModels, settings: OffsetSettings, rows: Rows, goal: Tensor, pooled: Tensor | None
) -> Teacher:
    device, _ = device_and_dtype(models.unet)
    lesson = Lesson(
        models=models,
        schedule=noise_schedule(models.scheduler),
        clean=clean_latents(models, rows.views, settings),
        rows=rows,
        goal=goal.to(device),
        goal_pooled=None if pooled is None else pooled.to(device),
        settings=settings,
    )
    return teacher_of(lesson)
