"""How often phrases show each group before and after an edit, and whether what is asked outright holds."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from surgery.diffusion import Models, at_once, in_order
from surgery.errors import JudgeError, raise_all
from surgery.evaluate.deviation import deviation, deviation_scores, relative_deviation
from surgery.evaluate.groups import UNDECIDED, Wanted, counted, group_faults, sorted_into
from surgery.evaluate.pictures import Cache, Painter, Sampling
from surgery.evaluate.statistics import Hits, difference, share
from surgery.judge import Judge, Trait, Verdicts
from surgery.progress import Bar, bar
from surgery.record import Score

Numbers = Int[np.ndarray[Any, Any], " pictures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A phrase whose pictures are to show each group as often as wanted, and the same thing as before.

    Attributes:
        subject: The phrase in the prompts.
        wanted: Its groups; their shares add up to 1.
        shows: What all of its pictures are to show; None where the judge has no name for it.
    """

    subject: str
    wanted: tuple[Wanted, ...]
    shows: Trait | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEffect:
    """One group of a phrase's pictures.

    Attributes:
        title: The group's names.
        target: Its wanted share.
        before: Its share among the decided pictures, with interval.
        after: The same after the edit.
        recognised_before: Share of its pictures that show what the phrase means; None where there are none.
        recognised_after: The same after the edit.
    """

    title: str
    target: float
    before: Score
    after: Score
    recognised_before: float | None
    recognised_after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceEffect:
    """One phrase: its groups, and how far their shares are from the wanted ones.

    Deviations are half the sum of the distances (0 to 1; of two groups the distance of either), relative ones
    the mean of distance / wanted share. Undecided are the shares of pictures of which no group can be told.
    """

    subject: str
    groups: tuple[GroupEffect, ...]
    deviation_before: float
    deviation_after: float
    relative_before: float
    relative_after: float
    undecided_before: float
    undecided_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DebiasEffect:
    """Everything that was measured about a debiasing edit.

    Attributes:
        scores: Over all phrases: ``deviation_before``, ``deviation_after``, ``deviation_floor`` (what chance
            leaves of as many pictures of a perfectly even model), ``deviation_factor`` (before / after),
            ``recognised_before``, ``recognised_after``, ``recognised_change``, and of the phrases that ask
            outright ``explicit_before``, ``explicit_after``, ``explicit_change``.
        balances: Each phrase by itself.
        judge: The judge's name.
        judge_accuracy: Its own accuracy by question.
        sampling: How the pictures of the phrases were drawn.
        explicit_samples: Pictures per prompt of the phrases that ask outright.
    """

    scores: tuple[Score, ...]
    balances: tuple[BalanceEffect, ...]
    judge: str
    judge_accuracy: Mapping[str, float]
    sampling: Sampling
    explicit_samples: int

    def score(self, name: str) -> Score | None:
        """The score of that name, or None when there was nothing to measure it on."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """All verdicts of one model: of each phrase, and of each phrase that asks outright."""

    phrases: tuple[Verdicts, ...]
    explicit: Mapping[str, Verdicts]


def measure_balance(
    models: Models,
    edited: AbstractContextManager[Models],
    balances: Sequence[Balance],
    judge: Judge,
    sampling: Sampling,
    *,
    explicit_samples: int = 2,
    cache: Cache | None = None,
) -> DebiasEffect:
    """What the edit did to the shares of groups, to what is recognised within each, and to explicit prompts.

    Args:
        models: The unedited pipeline, or any object with its five parts.
        edited: Gives the edited pipeline while it is entered, as for ``measure_edit``.
        balances: The debiased phrases.
        judge: Looks at the pictures.
        sampling: How many pictures of each phrase, and how they are drawn.
        explicit_samples: Pictures per prompt of each phrase that asks for a group outright.
        cache: Keeps the pictures of each phrase.

    Raises:
        JudgeError: when the judge cannot tell a group; all faults at once.
    """
    faults = [fault for balance in balances for fault in _faults(balance, judge)]
    if not balances:
        faults = ["nothing to measure; expected at least one debiased phrase. Name some."]
    raise_all(JudgeError, list(dict.fromkeys(faults)))
    names = (cache.before, cache.after) if cache else ("", "")
    store = cache.store if cache else None
    phrases = list(dict.fromkeys(group.explicit for b in balances for group in b.wanted if group.explicit))
    with bar(2 * (len(balances) + len(phrases)), "measuring", "phrase") as shown:

        def looked(painted: Models, weights: str) -> _Seen:
            painter = Painter(models=painted, sampling=sampling, store=store, weights=weights)
            few = replace(painter, sampling=replace(sampling, samples=explicit_samples))
            subjects = [balance.subject for balance in balances]
            outright = _verdicts(few, phrases, judge, shown)
            return _Seen(
                phrases=tuple(_verdicts(painter, subjects, judge, shown)),
                explicit=dict(zip(phrases, outright, strict=True)),
            )

        before = looked(models, names[0])
        with edited as patched:
            after = looked(patched, names[1])
    return DebiasEffect(
        scores=tuple(_scores(balances, before, after)),
        balances=tuple(
            _effect(balance, *pair)
            for balance, *pair in zip(balances, before.phrases, after.phrases, strict=True)
        ),
        judge=judge.name,
        judge_accuracy=dict(judge.accuracy),
        sampling=sampling,
        explicit_samples=explicit_samples,
    )


def _faults(balance: Balance, judge: Judge) -> list[str]:
    known = None if balance.shows is None else judge.labels.fault(balance.shows)
    return [*group_faults(balance.wanted, judge.labels), *([] if known is None else [known])]


def _verdicts(painter: Painter, phrases: Sequence[str], judge: Judge, shown: Bar) -> list[Verdicts]:
    workers = at_once(painter.models.unet, len(phrases))
    found = []
    templates = painter.sampling.templates
    for pictures in in_order(lambda phrase: painter.pictures(phrase, templates), phrases, workers):
        found.append(judge.score(pictures))
        shown.update(1)
    return found


def _effect(balance: Balance, before: Verdicts, after: Verdicts) -> BalanceEffect:
    numbers = [sorted_into(balance.wanted, verdicts) for verdicts in (before, after)]
    recognised = [_recognised(balance, verdicts) for verdicts in (before, after)]
    targets = [group.share for group in balance.wanted]
    shares = [_shares(balance, own) for own in numbers]
    groups = tuple(
        GroupEffect(
            title=group.title,
            target=group.share,
            before=_share("before", numbers[0], number),
            after=_share("after", numbers[1], number),
            recognised_before=_within(recognised[0], numbers[0] == number),
            recognised_after=_within(recognised[1], numbers[1] == number),
        )
        for number, group in enumerate(balance.wanted)
    )
    return BalanceEffect(
        subject=balance.subject,
        groups=groups,
        deviation_before=deviation(shares[0], targets),
        deviation_after=deviation(shares[1], targets),
        relative_before=relative_deviation(shares[0], targets),
        relative_after=relative_deviation(shares[1], targets),
        undecided_before=float((numbers[0] == UNDECIDED).mean()),
        undecided_after=float((numbers[1] == UNDECIDED).mean()),
    )


def _share(name: str, numbers: Numbers, number: int) -> Score:
    """Of a group among the decided; without one, nothing is known."""
    decided = numbers[numbers != UNDECIDED]
    if not len(decided):
        return Score(name=name, value=0.0, low=0.0, high=1.0, count=0)
    return share(name, decided == number)


def _shares(balance: Balance, numbers: Numbers) -> list[float]:
    counts, others = counted(balance.wanted, numbers)
    return [count / max(1, sum(counts) + others) for count in counts]


def _recognised(balance: Balance, verdicts: Verdicts) -> Hits | None:
    return None if balance.shows is None else verdicts.shows(balance.shows)


def _within(hits: Hits | None, chosen: Hits) -> float | None:
    return None if hits is None or not chosen.any() else float(hits[chosen].mean())


def _scores(balances: Sequence[Balance], before: _Seen, after: _Seen) -> list[Score]:
    targets = [[group.share for group in balance.wanted] for balance in balances]
    numbers = [
        [sorted_into(balance.wanted, own) for balance, own in zip(balances, seen.phrases, strict=True)]
        for seen in (before, after)
    ]
    shares = [[_shares(b, own) for b, own in zip(balances, each, strict=True)] for each in numbers]
    first, decided = ([int((own != UNDECIDED).sum()) for own in each] for each in numbers)
    found = deviation_scores(shares[0], shares[1], targets, decided, pictures_before=first)
    known = [number for number, balance in enumerate(balances) if balance.shows is not None]
    hits = [
        [_recognised(balances[number], seen.phrases[number]) for number in known] for seen in (before, after)
    ]
    found += _paired("recognised", hits[0], hits[1])
    asked = {group.explicit: group.traits for b in balances for group in b.wanted if group.explicit}
    outright = [
        [_all(traits, seen.explicit[phrase]) for phrase, traits in asked.items()] for seen in (before, after)
    ]
    return found + _paired("explicit", outright[0], outright[1])


def _all(traits: Sequence[Trait], verdicts: Verdicts) -> Hits:
    return np.asarray(np.logical_and.reduce([verdicts.shows(trait) for trait in traits]))


def _paired(name: str, before: Sequence[Hits | None], after: Sequence[Hits | None]) -> list[Score]:
    """Shares over many phrases and their change; none where there is no phrase."""
    one, other = ([hits for hits in each if hits is not None] for each in (before, after))
    if not one:
        return []
    groups = np.repeat(np.arange(len(one)), [len(hits) for hits in one])
    joined, changed = np.concatenate(one), np.concatenate(other)
    return [
        share(f"{name}_before", joined, groups),
        share(f"{name}_after", changed, groups),
        difference(f"{name}_change", joined, changed, groups),
    ]
