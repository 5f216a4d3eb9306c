"""The effect of a patch on its own replacements and on held-out concepts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from surgery.evaluate import Change, EditEffect, Probe, Sampling, measure_edit
from surgery.judge import Judge, Labels, Trait
from surgery.methods import Outcome, Replacement
from surgery.patch import Patch, applied
from surgery.recipe import Recipe
from surgery.record import Finding
from surgery.store import Store
from surgery.study.weights import picture_cache
from surgery.study.words import Words


def measure_replacements(
    recipe: Recipe,
    outcomes: Sequence[Outcome],
    words: Words,
    models: Any,
    patch: Patch,
    judge: Judge,
    store: Store,
    *,
    batch: int | None = None,
) -> tuple[EditEffect | None, tuple[Finding, ...]]:
    """What ``recipe.evaluate`` asks for; replacements the judge has no name for are left out and named.

    Held out are concepts that none of the ``outcomes`` names.
    """
    wish = recipe.evaluate
    if wish is None:
        return None, ()
    changes, findings = changes_of(replacements_of(outcomes), words, judge.labels)
    known = set(judge.labels.concept)
    probes = [
        Probe(subject=name, shows=Trait(name))
        for name in words.others(touched_names(outcomes, words), wish.held_out)
        if name in known
    ]
    if not changes and not probes:
        return None, findings
    sampling = sampling_of(recipe, words, wish.templates, wish.samples, batch)
    cache = picture_cache(models, patch, store)
    effect = measure_edit(models, applied(models, patch), changes, probes, judge, sampling, cache=cache)
    return effect, findings


def sampling_of(recipe: Recipe, words: Words, kind: str, samples: int, batch: int | None) -> Sampling:
    """How a recipe's pictures are drawn: its seed and sampler, the checkpoint's templates of one kind."""
    sampling = Sampling(
        templates=words.templates(kind),
        samples=samples,
        seed=recipe.seed,
        steps=recipe.sample.steps,
        guidance=recipe.sample.guidance,
    )
    return sampling if batch is None else replace(sampling, batch=batch)


def replacements_of(outcomes: Sequence[Outcome]) -> tuple[Replacement, ...]:
    """What all edits together replace."""
    return tuple(replacement for outcome in outcomes for replacement in outcome.replacements)


def touched_names(outcomes: Sequence[Outcome], words: Words) -> set[str]:
    """Concepts that edits name as source, destination or preserved: no measure of what was left alone."""
    phrases = [phrase for r in replacements_of(outcomes) for phrase in (r.source, r.destination or "")]
    phrases += [phrase for outcome in outcomes for phrase in outcome.preserved]
    return {words.name(phrase) for phrase in phrases}


def changes_of(
    replacements: Sequence[Replacement], words: Words, labels: Labels
) -> tuple[list[Change], tuple[Finding, ...]]:
    """What to look for in pictures of each replacement; those the judge has no name for are reported.

    What is debiased keeps its meaning and is measured by itself.
    """
    changes, findings = [], []
    for replacement in (one for one in replacements if not one.groups):
        old = _trait(replacement.source, replacement.kind, words, labels)
        new = _trait(replacement.destination, replacement.kind, words, labels)
        if old is None and new is None:
            message = f"the judge knows neither {replacement.source!r} nor {replacement.destination!r}"
            findings.append(Finding(kind="not-measured", subject=replacement.source, message=message))
            continue
        findings += _half_known(replacement, old, new)
        twins = old is not None and new is not None and _column(labels, old) == _column(labels, new)
        changes.append(
            Change(
                subject=replacement.source,
                old=None if twins else old,
                new=new,
                destination=None if new is None else replacement.destination,
                templates=replacement.templates,
            )
        )
    return list(dict.fromkeys(changes)), tuple(findings)


def _half_known(replacement: Replacement, old: Trait | None, new: Trait | None) -> list[Finding]:
    """What is not measured of a replacement, one end of which the judge has no name for."""
    ends = {replacement.source: old, replacement.destination: new}
    return [
        Finding(
            kind="not-measured",
            subject=replacement.source,
            message=f"the judge does not know {phrase!r}, and nothing is counted by that name",
        )
        for phrase, trait in ends.items()
        if phrase and trait is None
    ]


def _trait(phrase: str | None, kind: str, words: Words, labels: Labels) -> Trait | None:
    """What the judge can look for in pictures of ``phrase``: a concept, or for style edits a style."""
    if not phrase:
        return None
    trait = Trait(phrase, "style") if kind == "style" else Trait(words.name(phrase))
    return trait if labels.fault(trait) is None else None


def _column(labels: Labels, trait: Trait) -> tuple[str, int]:
    return trait.axis, labels.column(trait)
