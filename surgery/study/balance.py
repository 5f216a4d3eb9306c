"""The effect of a debiasing patch on its own phrases."""

from collections.abc import Sequence
from typing import Any

from surgery.evaluate import Balance, DebiasEffect, measure_balance
from surgery.judge import Judge, Trait
from surgery.methods import Outcome
from surgery.patch import Patch, applied
from surgery.recipe import Recipe
from surgery.store import Store
from surgery.study.effect import replacements_of, sampling_of
from surgery.study.rounds import wanted_of
from surgery.study.weights import picture_cache
from surgery.study.words import Words


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
    debiased = [replacement for replacement in replacements_of(outcomes) if replacement.groups]
    if wish is None or not debiased:
        return None
    balances = []
    for replacement in debiased:
        shows = Trait(words.name(replacement.source))
        balances.append(
            Balance(
                subject=replacement.asked_as.replace("{}", replacement.source),
                wanted=wanted_of(replacement),
                shows=shows if judge.labels.fault(shows) is None else None,
            )
        )
    return measure_balance(
        models,
        applied(models, patch),
        balances,
        judge,
        sampling_of(recipe, words, wish.templates, wish.group_samples, batch),
        explicit_samples=wish.samples,
        cache=picture_cache(models, patch, store),
    )
