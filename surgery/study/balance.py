"""The effect of a debiasing patch on its own phrases."""

from collections.abc import Sequence
from typing import Any

from surgery.evaluate import Balance, DebiasEffect, measure_balance
from surgery.judge import Judge, Labels, Trait
from surgery.methods import Outcome, Replacement
from surgery.patch import Patch, applied
from surgery.recipe import Recipe
from surgery.store import Store
from surgery.study.effect import replacements_of, sampling_of
from surgery.study.rounds import wanted_of
from surgery.study.weights import picture_cache
from surgery.study.words import Words


def balances_of(replacements: Sequence[Replacement], words: Words, labels: Labels) -> tuple[Balance, ...]:
    """What to count in pictures of each debiased phrase; other replacements are passed over."""
    found = []
    for replacement in (one for one in replacements if one.groups):
        shows = Trait(words.name(replacement.source))
        found.append(
            Balance(
                subject=replacement.asked_as.replace("{}", replacement.source),
                wanted=wanted_of(replacement),
                shows=shows if labels.fault(shows) is None else None,
            )
        )
    return tuple(found)


def measure_debiased(
    recipe: Recipe,
    outcomes: Sequence[Outcome],
    words: Words,
    models: Any,
    patch: Patch,
    judge: Judge,
    store: Store,
    *,
    batch: int | None = None,
) -> DebiasEffect | None:
    """Shares of groups before and after, as ``recipe.evaluate`` asks; None where nothing was debiased."""
    wish = recipe.evaluate
    balances = balances_of(replacements_of(outcomes), words, judge.labels)
    if wish is None or not balances:
        return None
    return measure_balance(
        models,
        applied(models, patch),
        balances,
        judge,
        sampling_of(recipe, words, wish.templates, wish.group_samples, batch),
        explicit_samples=wish.samples,
        cache=picture_cache(models, patch, store),
    )
