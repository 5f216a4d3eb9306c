"""What a judge saw of one phrase, picture by picture, and the shares over many phrases."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from surgery.evaluate.sample_size import SampleSize, advice, cautious, measured_spread
from surgery.evaluate.statistics import Groups, Hits, Rows, bootstrap, difference, ratio, share
from surgery.judge import Trait, Verdicts
from surgery.record import Score

# of so many phrases on the worst ones are looked at by themselves: so large a part of them, one at least
_ENOUGH: Final = 4
_TAIL: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Whether each picture shows a trait, before and after; at one place prompt and seed are the same."""

    before: Hits
    after: Hits

    @classmethod
    def of(cls, trait: Trait, before: Verdicts, after: Verdicts, beside: Trait | None = None) -> "Pair":
        """The pair for one trait, or for two at once."""
        return cls(before=shows(trait, before, beside), after=shows(trait, after, beside))


def shows(trait: Trait, verdicts: Verdicts, beside: Trait | None = None) -> Hits:
    """Whether each picture shows a trait, and what is to be ``beside`` it."""
    hits = verdicts.shows(trait)
    return hits if beside is None else np.asarray(hits & verdicts.shows(beside))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One edited phrase: its old and its new trait, and the new one on the destination's own prompts."""

    old: Pair | None
    new: Pair | None
    destination: Hits | None


def change_scores(seen: Sequence[Seen]) -> Iterator[Score]:
    """Scores over all edited phrases together."""
    old = _Joined.of(view.old for view in seen)
    new = _Joined.of(view.new for view in seen)
    if old is not None:
        yield share("old_before", old.before, old.phrases)
        yield share("old_after", old.after, old.phrases)
        left = ratio("forgotten", old.after, old.before, old.phrases)
        if left is not None:
            yield replace(left, value=1 - left.value, low=1 - left.high, high=1 - left.low)
    if new is not None:
        yield share("new_before", new.before, new.phrases)
        yield share("new_after", new.after, new.phrases)
    aimed = _Joined.of(
        Pair(before=view.destination, after=view.new.after)
        for view in seen
        if view.new is not None and view.destination is not None
    )
    if aimed is not None:
        yield share("destination", aimed.before, aimed.phrases)
        reached = ratio("reached", aimed.after, aimed.before, aimed.phrases)
        if reached is not None:
            yield reached


def held_out_scores(pairs: Sequence[Pair]) -> Iterator[Score]:
    """Scores over all held-out phrases together."""
    pair = _Joined.of(pairs)
    if pair is not None:
        yield share("held_out_before", pair.before, pair.phrases)
        yield share("held_out_after", pair.after, pair.phrases)
        yield difference("held_out_change", pair.before, pair.after, pair.phrases)
        worst = _worst(pair)
        if worst is not None:
            yield worst


def held_out_advice(pairs: Sequence[Pair]) -> str:
    """How small a loss these pictures could have seen, and how many it takes; empty without any."""
    pair = _Joined.of(pairs)
    if pair is None:
        return ""
    size = SampleSize(pictures=len(pair.before), phrases=len(pairs))
    return advice(size, cautious(measured_spread(pair.before, pair.after, pair.phrases), size))


def _worst(pair: "_Joined") -> Score | None:
    """The change of the phrases that lost most, 5 % of them but one at least.

    None for fewer than 4 phrases, or for one picture each.

    One half of each phrase's pictures says which these are, and the other half how much they lost, and the
    other way round: those that were unlucky once are not counted as harmed.
    """
    counts = np.bincount(pair.phrases)
    if len(counts) < _ENOUGH or counts.min() < 2:
        return None
    changes = pair.after.astype(int) - pair.before.astype(int)
    half = np.concatenate([np.arange(count) % 2 for count in counts])
    most = max(1, round(_TAIL * len(counts)))

    def lost(rows: Rows) -> float:
        own = [_means(changes[part], pair.phrases[part]) for part in (rows[half[rows] == h] for h in (0, 1))]
        orders = [np.argsort(means, kind="stable")[:most] for means in own]
        return float((own[0][orders[1]].mean() + own[1][orders[0]].mean()) / 2)

    return bootstrap("held_out_worst", pair.phrases, lost)


def _means(values: Rows, phrases: Groups) -> Float[np.ndarray[Any, Any], " phrases"]:
    _, which = np.unique(phrases, return_inverse=True)
    means: np.ndarray[Any, Any] = np.bincount(which, weights=values) / np.bincount(which)
    return means


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined:
    """The pictures of several phrases in one row, with the number of the phrase of each."""

    before: Hits
    after: Hits
    phrases: Groups

    @classmethod
    def of(cls, pairs: Iterable[Pair | None]) -> "_Joined | None":
        present = [pair for pair in pairs if pair is not None]
        if not present:
            return None
        return cls(
            before=np.concatenate([pair.before for pair in present]),
            after=np.concatenate([pair.after for pair in present]),
            phrases=np.repeat(np.arange(len(present)), [len(pair.before) for pair in present]),
        )
