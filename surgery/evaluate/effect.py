"""The effect of an edit: the same prompts and seeds before and after, as a judge sees them."""

from collections.abc import Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

from surgery.diffusion import Models, at_once, in_order
from surgery.errors import JudgeError, raise_all
from surgery.evaluate.changes import Change, Probe, Section, faults
from surgery.evaluate.likeness import Look, feature_faults, likeness_scores, look_at
from surgery.evaluate.pictures import Cache, Painter, Pictures, Sampling
from surgery.evaluate.seen import Pair, Seen, change_scores, held_out_advice, held_out_scores, shows
from surgery.evaluate.significance import holm, p_value
from surgery.judge import Judge
from surgery.progress import Bar, bar
from surgery.record import Score
from surgery.store import Store

_Task: TypeAlias = tuple[str, tuple[str, ...], Sampling]
"""A phrase, its templates, and how its pictures are drawn; the sampling's own templates left out."""


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
    """Shares (0 to 1) of one held-out phrase's pictures that show what they are to show.

    ``chance`` is how likely so large a change would be if nothing had changed, corrected for the number of
    phrases (McNemar, Holm).
    """

    probe: Probe
    before: float
    after: float
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EditEffect:
    """Everything that was measured about an edit.

    Attributes:
        scores: Over all phrases together, each with its 95 % interval and count. Which there are depends on
            what was asked: ``old_before``, ``old_after``, ``new_before``, ``new_after``; ``destination`` (the
            unedited model on the destinations' prompts) and ``reached`` (``new_after`` divided by it);
            ``held_out_before``, ``held_out_after``, ``held_out_change`` (after minus before, in pairs);
            ``forgotten`` (1 - ``old_after`` / ``old_before``); of sections that compare pictures
            ``moved``, ``frechet`` and, where drawings were given, ``frechet_drawings_before`` and ``_after``.
        changes: Each edited phrase by itself.
        held_out: Each held-out phrase by itself.
        judge: The judge's name.
        judge_accuracy: Its own accuracy by question.
        sampling: How the pictures were drawn.
        advice: How small a loss the held-out pictures could have seen; empty without any.
    """

    scores: tuple[Score, ...]
    changes: tuple[ChangeEffect, ...]
    held_out: tuple[ProbeEffect, ...]
    judge: str
    judge_accuracy: Mapping[str, float]
    sampling: Sampling
    advice: str = ""

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
    """What the edit did to the edited prompts and to the held-out ones: ``measure_sections`` of one section.

    Args:
        models: The unedited pipeline, or any object with its five parts.
        edited: Gives the edited pipeline while it is entered, as there.
        changes: The edited phrases.
        held_out: Phrases that the edit was to leave alone.
        judge: Looks at the pictures.
        sampling: How many pictures, and how they are drawn.
        cache: Keeps the pictures of each phrase, for other runs and for this one when it was stopped.

    Raises:
        JudgeError: as there.
    """
    section = Section(name="", sampling=sampling, changes=tuple(changes), probes=tuple(held_out))
    return measure_sections(models, edited, [section], judge, cache=cache)[""]


def measure_sections(
    models: Models,
    edited: AbstractContextManager[Models],
    sections: Sequence[Section],
    judge: Judge,
    *,
    cache: Cache | None = None,
    drawings: Pictures | None = None,
) -> dict[str, EditEffect]:
    """What the edit did, section by section; pictures that several sections ask for are drawn once.

    Each picture after has a partner before, with the same prompt and seed. The destinations' prompts are
    drawn by the unedited model only.

    Args:
        models: The unedited pipeline, or any object with its five parts.
        edited: Gives the edited pipeline while it is entered: ``surgery.applied(pipeline, patch)``, or
            ``contextlib.nullcontext(other)`` for a second pipeline. It is entered after all pictures of the
            unedited model are drawn, so it may change ``models`` in place.
        sections: What is measured; their names differ.
        judge: Looks at the pictures; one with ``features`` where a section compares pictures.
        cache: Keeps the pictures of each phrase, for other runs and for this one when it was stopped.
        drawings: Pictures of how it should look, for sections that compare.

    Raises:
        JudgeError: when the judge cannot answer for a concept, or cannot tell the old from the new; when a
            template has no place for the phrase. All faults at once.
    """
    found = [f for s in sections for f in faults(s.changes, s.probes, s.sampling.templates, judge.labels)]
    found += feature_faults(judge) if any(section.compared for section in sections) else []
    raise_all(JudgeError, list(dict.fromkeys(found)))
    both = list(dict.fromkeys(_task(item, s.sampling) for s in sections for item in s.items))
    aims = [aim for s in sections for change in s.changes if (aim := _aim(change, s.sampling)) is not None]
    once = list(dict.fromkeys([*both, *aims]))
    closely = {_task(probe, s.sampling) for s in sections if s.compared for probe in s.probes}
    names = (cache.before, cache.after) if cache else ("", "")
    store = cache.store if cache else None
    with bar(len(once) + len(both), "measuring", "phrase") as shown:
        before = _looked(models, names[0], store, once, closely, judge, shown)
        with edited as patched:
            after = _looked(patched, names[1], store, both, closely, judge, shown)
    ideal = None if drawings is None else look_at(drawings, judge, closely=True)
    return {section.name: _effect(section, before, after, judge, ideal) for section in sections}


def _effect(
    section: Section,
    before: Mapping[_Task, Look],
    after: Mapping[_Task, Look],
    judge: Judge,
    ideal: Look | None,
) -> EditEffect:
    seen = [_seen(change, section.sampling, before, after) for change in section.changes]
    kept = [_kept(probe, section.sampling, before, after) for probe in section.probes]
    scores = [*change_scores(seen), *held_out_scores(kept)]
    if section.compared:
        tasks = [_task(probe, section.sampling) for probe in section.probes]
        scores += likeness_scores([before[t] for t in tasks], [after[t] for t in tasks], ideal)
    return EditEffect(
        scores=tuple(scores),
        changes=tuple(map(_change_effect, section.changes, seen)),
        held_out=_probe_effects(section.probes, kept),
        judge=judge.name,
        judge_accuracy=dict(judge.accuracy),
        sampling=section.sampling,
        advice=held_out_advice(kept),
    )


def _task(item: Change | Probe, sampling: Sampling) -> _Task:
    return item.subject, item.templates or sampling.templates, replace(sampling, templates=())


def _aim(change: Change, sampling: Sampling) -> _Task | None:
    if change.destination is None or change.new is None:
        return None
    return change.destination, change.templates or sampling.templates, replace(sampling, templates=())


def _looked(
    models: Models,
    weights: str,
    store: Store | None,
    tasks: Sequence[_Task],
    closely: Container[_Task],
    judge: Judge,
    shown: Bar,
) -> dict[_Task, Look]:
    def drawn(task: _Task) -> Pictures:
        phrase, templates, sampling = task
        painter = Painter(models=models, sampling=sampling, store=store, weights=weights)
        return painter.pictures(phrase, templates)

    looks = {}
    workers = at_once(models.unet, len(tasks))
    for task, pictures in zip(tasks, in_order(drawn, tasks, workers), strict=True):
        looks[task] = look_at(pictures, judge, closely=task in closely)
        shown.update(1)
    return looks


def _seen(
    change: Change, sampling: Sampling, before: Mapping[_Task, Look], after: Mapping[_Task, Look]
) -> Seen:
    task, aim = _task(change, sampling), _aim(change, sampling)
    here = (before[task].verdicts, after[task].verdicts, change.beside)
    goal = None
    if aim is not None and change.new is not None:
        goal = shows(change.new, before[aim].verdicts, change.beside)
    return Seen(
        old=None if change.old is None else Pair.of(change.old, *here[:2]),
        new=None if change.new is None else Pair.of(change.new, *here),
        destination=goal,
    )


def _kept(
    probe: Probe, sampling: Sampling, before: Mapping[_Task, Look], after: Mapping[_Task, Look]
) -> Pair:
    task = _task(probe, sampling)
    return Pair.of(probe.shows, before[task].verdicts, after[task].verdicts, probe.beside)


def _change_effect(change: Change, seen: Seen) -> ChangeEffect:
    return ChangeEffect(
        change=change,
        old_before=None if seen.old is None else float(seen.old.before.mean()),
        old_after=None if seen.old is None else float(seen.old.after.mean()),
        new_before=None if seen.new is None else float(seen.new.before.mean()),
        new_after=None if seen.new is None else float(seen.new.after.mean()),
        destination=None if seen.destination is None else float(seen.destination.mean()),
    )


def _probe_effects(probes: Sequence[Probe], kept: Sequence[Pair]) -> tuple[ProbeEffect, ...]:
    chances = holm([p_value(pair.before, pair.after) for pair in kept])
    return tuple(
        ProbeEffect(
            probe=probe, before=float(pair.before.mean()), after=float(pair.after.mean()), chance=chance
        )
        for probe, pair, chance in zip(probes, kept, chances, strict=True)
    )
