"""The rows of a batch: every prompt of every concept, with the picture it is looked at with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from surgery.anatomy import Span
from surgery.methods.emcid.metric import Alignment, align
from surgery.methods.emcid.nouns import Concept
from surgery.methods.emcid.settings import OffsetSettings
from surgery.methods.emcid.tail import Prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One prompt of one concept; ``number`` counts the concept's views from 0."""

    owner: int
    number: int
    concept: Concept
    template: int

    @property
    def source(self) -> Span:
        """The prompt with the source in it."""
        return self.concept.spans[self.template]

    @property
    def goal(self) -> Span:
        """The prompt with the destination in it; the source's own where only pictures tell."""
        goals = self.concept.goals
        return self.source if goals is None else goals[self.template]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The views of a batch as tensors.

    ``number`` counts the rows of each concept from 0 to its ``count``; ``taught`` is False where no
    destination teaches. ``source_read`` and ``goal_read`` mark the tokens that the U-Net sees, None where it
    sees all.
    """

    views: tuple[View, ...]
    owner: Int[Tensor, "rows"]
    number: Int[Tensor, "rows"]
    count: Int[Tensor, "rows"]
    taught: Bool[Tensor, "rows"]
    source: Prompts
    goal: Prompts
    source_read: Bool[Tensor, "rows tokens"] | None
    goal_read: Bool[Tensor, "rows tokens"] | None
    alignment: Alignment

    def due(self, step: int, at_once: int | None) -> Bool[Tensor, "rows"]:
        """The rows that a step looks at: ``at_once`` of each concept in turn, or all."""
        if at_once is None:
            return torch.ones_like(self.taught)
        return (self.number - step * at_once) % self.count < at_once

    def turn(self, step: int, at_once: int | None) -> Int[Tensor, "rows"]:
        """How often each row was due before a step in which it is."""
        at_once_of = self.count if at_once is None else self.count.clamp(max=at_once)
        return (step * at_once_of + self.count - 1 - self.number) // self.count

    def round(self, at_once: int | None) -> int:
        """Steps after which every row was looked at."""
        return 1 if at_once is None else -(-int(self.count.max()) // at_once)


def views_of(concepts: Sequence[Concept], settings: OffsetSettings) -> tuple[View, ...]:
    """All views of a batch; a concept's templates and pictures take turns."""
    return tuple(
        View(owner=owner, number=number, concept=concept, template=number % len(concept.spans))
        for owner, concept in enumerate(concepts)
        for number in range(settings.view_count(len(concept.spans), len(concept.edit.images)))
    )


def rows_of(
    concepts: Sequence[Concept], settings: OffsetSettings, *, positions: int, pad: int, device: torch.device
) -> Rows:
    """The views of a batch as tensors on a device.

    With context "full" prompts have all positions and the encoder reads its padding, as the pipelines do;
    with "concept" they end with the concept's longest prompt and padding is left out, as released. Where
    only the pooled feature counts, they end with the last end token: what lies behind cannot reach it.
    """
    views = views_of(concepts, settings)
    whole = settings.mode != "text" or settings.metric == "cross_attention"
    owner = torch.tensor([view.owner for view in views])
    source, source_length = _prompts([view.source for view in views], owner, settings, positions, pad, whole)
    goal, goal_length = _prompts([view.goal for view in views], owner, settings, positions, pad, whole)
    counts = torch.bincount(owner)
    short = settings.context == "concept" and whole
    return Rows(
        views=views,
        owner=owner.to(device),
        number=torch.tensor([view.number for view in views], device=device),
        count=counts[owner].to(device),
        taught=torch.tensor([view.concept.goals is not None for view in views], device=device),
        source=source.to(device),
        goal=goal.to(device),
        source_read=_within(source_length, source).to(device) if short else None,
        goal_read=_within(goal_length, goal).to(device) if short else None,
        alignment=align(
            source.subject.to(device),
            goal.subject.to(device),
            torch.tensor([view.goal.start < view.goal.end for view in views], device=device),
            source_length.to(device),
            goal_length.to(device),
        ),
    )


def _prompts(
    spans: list[Span], owner: Tensor, settings: OffsetSettings, positions: int, pad: int, whole: bool
) -> tuple[Prompts, Tensor]:
    lengths = torch.tensor([len(span.ids) for span in spans])
    if whole and settings.context == "full":
        context = torch.full_like(lengths, positions)
    else:
        longest = torch.zeros(int(owner.max()) + 1, dtype=lengths.dtype)
        context = longest.scatter_reduce(0, owner, lengths, "amax")[owner]
    width = int(context.max())
    ids = torch.tensor([[*span.ids, *[pad] * (width - len(span.ids))] for span in spans])
    real = torch.arange(width)[None] < lengths[:, None]
    prompts = Prompts(
        ids=ids,
        subject=torch.tensor([span.last for span in spans]),
        eos=torch.tensor([span.eos for span in spans]),
        real=real if whole and settings.context == "concept" else None,
    )
    return prompts, context


def _within(lengths: Tensor, prompts: Prompts) -> Tensor:
    return torch.arange(prompts.ids.shape[1])[None] < lengths[:, None]
