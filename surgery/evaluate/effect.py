"""The effect of an edit: the same prompts and seeds before and after, as a judge sees them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from surgery.diffusion import Models, at_once, in_order
from surgery.errors import JudgeError, raise_all
from surgery.evaluate.changes import Change, Probe, faults
from surgery.evaluate.pictures import Cache, Painter, Sampling
from surgery.evaluate.seen import Pair, Seen, change_scores, held_out_scores
from surgery.judge import Judge, Verdicts
from surgery.progress import Bar, bar
from surgery.record import Score

_Task: TypeAlias = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEffect:
    """Shares (0 to 1) of one edited phrase's pictures; None where nothing was looked for."""

    change: Change
    old_before: float | None
    old_after: float | None
    new_before: float | None
    new_after: float | None
    destination: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEffect:
    """Shares (0 to 1) of one held-out phrase's pictures that show what they are to show."""

    probe: Probe
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EditEffect:
    """Everything that was measured about an edit.

    Attributes:
        scores: Over all phrases together, each with its 95 % interval and count. Which there are depends on
            what was asked: ``old_before``, ``old_after``, ``new_before``, ``new_after``; ``destination`` (the
            unedited model on the destinations' prompts) and ``reached`` (``new_after`` divided by it);
            ``held_out_before``, ``held_out_after``, ``held_out_change`` (after minus before, in pairs).
        changes: Each edited phrase by itself.
        held_out: Each held-out phrase by itself.
        judge: The judge's name.
        judge_accuracy: Its own accuracy by question.
        sampling: How the pictures were drawn.
    """

    scores: tuple[Score, ...]
    changes: tuple[ChangeEffect, ...]
    held_out: tuple[ProbeEffect, ...]
    judge: str
    judge_accuracy: Mapping[str, float]
    sampling: Sampling

    def score(self, name: str) -> Score | None:
        """The score of that name, or None when there was nothing to measure it on."""
        return next((score for score in self.scores if score.name == name), None)


def measure_edit(
    models: Models,
    edited: AbstractContextManager[Models],
    changes: Sequence[Change],
    held_out: Sequence[Probe],
    judge: Judge,
    sampling: Sampling,
    *,
    cache: Cache | None = None,
) -> EditEffect:
    """What the edit did to the edited prompts and to the held-out ones.

    Each picture after has a partner before, with the same prompt and seed. The destinations' prompts are
    drawn by the unedited model only.

    Args:
        models: The unedited pipeline, or any object with its five parts.
        edited: Gives the edited pipeline while it is entered: ``surgery.applied(pipeline, patch)``, or
            ``contextlib.nullcontext(other)`` for a second pipeline. It is entered after all pictures of the
            unedited model are drawn, so it may change ``models`` in place.
        changes: The edited phrases.
        held_out: Phrases that the edit was to leave alone.
        judge: Looks at the pictures.
        sampling: How many pictures, and how they are drawn.
        cache: Keeps the pictures of each phrase, for other runs and for this one when it was stopped.

    Raises:
        JudgeError: when the judge cannot answer for a concept, or cannot tell the old from the new; when a
            template has no place for the phrase. All faults at once.
    """
    raise_all(JudgeError, faults(changes, held_out, sampling.templates, judge.labels))
    items: list[Change | Probe] = [*changes, *held_out]
    both = list(dict.fromkeys(_task(item, sampling) for item in items))
    aims = [aim for change in changes if (aim := _aim(change, sampling)) is not None]
    once = list(dict.fromkeys([*both, *aims]))
    names = (cache.before, cache.after) if cache else ("", "")
    store = cache.store if cache else None
    with bar(len(once) + len(both), "measuring", "phrase") as shown:
        painter = Painter(models=models, sampling=sampling, store=store, weights=names[0])
        before = _judged(painter, once, judge, shown)
        with edited as patched:
            painter = Painter(models=patched, sampling=sampling, store=store, weights=names[1])
            after = _judged(painter, both, judge, shown)
    seen = [_seen(change, sampling, before, after) for change in changes]
    kept = [
        Pair.of(probe.shows, before[_task(probe, sampling)], after[_task(probe, sampling)])
        for probe in held_out
    ]
    return EditEffect(
        scores=(*change_scores(seen), *held_out_scores(kept)),
        changes=tuple(_change_effect(change, view) for change, view in zip(changes, seen, strict=True)),
        held_out=tuple(_probe_effect(probe, pair) for probe, pair in zip(held_out, kept, strict=True)),
        judge=judge.name,
        judge_accuracy=dict(judge.accuracy),
        sampling=sampling,
    )


def _task(item: Change | Probe, sampling: Sampling) -> _Task:
    return item.subject, item.templates or sampling.templates


def _aim(change: Change, sampling: Sampling) -> _Task | None:
    if change.destination is None or change.new is None:
        return None
    return change.destination, change.templates or sampling.templates


def _judged(painter: Painter, tasks: Sequence[_Task], judge: Judge, shown: Bar) -> dict[_Task, Verdicts]:
    verdicts = {}
    workers = at_once(painter.models.unet, len(tasks))
    drawn = in_order(lambda task: painter.pictures(*task), tasks, workers)
    for task, pictures in zip(tasks, drawn, strict=True):
        verdicts[task] = judge.score(pictures)
        shown.update(1)
    return verdicts


def _seen(
    change: Change, sampling: Sampling, before: Mapping[_Task, Verdicts], after: Mapping[_Task, Verdicts]
) -> Seen:
    task, aim = _task(change, sampling), _aim(change, sampling)
    return Seen(
        old=None if change.old is None else Pair.of(change.old, before[task], after[task]),
        new=None if change.new is None else Pair.of(change.new, before[task], after[task]),
        destination=None if aim is None or change.new is None else before[aim].shows(change.new),
    )


def _change_effect(change: Change, seen: Seen) -> ChangeEffect:
    return ChangeEffect(
        change=change,
        old_before=None if seen.old is None else float(seen.old.before.mean()),
        old_after=None if seen.old is None else float(seen.old.after.mean()),
        new_before=None if seen.new is None else float(seen.new.before.mean()),
        new_after=None if seen.new is None else float(seen.new.after.mean()),
        destination=None if seen.destination is None else float(seen.destination.mean()),
    )


def _probe_effect(probe: Probe, pair: Pair) -> ProbeEffect:
    return ProbeEffect(probe=probe, before=float(pair.before.mean()), after=float(pair.after.mean()))
