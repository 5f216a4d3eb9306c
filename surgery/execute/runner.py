"""Compute the edits of a recipe, one after the other, each from the untouched base."""

import logging
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.errors import MethodError, raise_all
from surgery.execute.earlier import digests_of, keys_of
from surgery.methods import Outcome, method
from surgery.patch import Patch, Term, make_patch
from surgery.patch.terms import shared_masks
from surgery.plan import Plan, build_plan
from surgery.recipe import Edit, Recipe
from surgery.record import JSON, Finding
from surgery.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A patch, and what each edit had to say; ``elapsed_s`` is wall time for each step."""

    patch: Patch
    outcomes: tuple[Outcome, ...]
    elapsed_s: tuple[float, ...]
    findings: tuple[Finding, ...] = ()


def plan_recipe(recipe: Recipe, base: Checkpoint) -> Plan:
    """The plan of a recipe on a base, from headers alone.

    Raises:
        MethodError: when the base does not have what an edit needs.
    """
    works = [method(name).work(entry, recipe, base) for name, entry in map(_only, recipe.edits)]
    if recipe.after:
        digests = digests_of(recipe)
        works = [replace(work, meaning={**work.meaning, "after": digests}) for work in works]
    return build_plan(recipe, base, works)


def check_edits(recipe: Recipe, base: Checkpoint, models: Any) -> None:
    """Refuse edits whose faults show before anything is computed.

    Raises:
        SurgeryError: with what ``compute_patch`` would find wrong with concepts, settings, models or earlier
            patches, or when two edits are about the same source: each writes the whole change, and they would
            be added up.
    """
    keys_of(recipe, base)
    first: dict[Hashable, str] = {}
    faults = []
    for number, (name, entry) in enumerate(map(_only, recipe.edits)):
        for source, label in method(name).check(entry, recipe, base, models).items():
            here = f"edits[{number}] ({label})"
            if source in first:
                faults.append(
                    f"{first[source]} and {here} are about one source, and their changes would be added up; "
                    "expected each source once. Keep one of them, or put both into one edit."
                )
            first.setdefault(source, here)
    raise_all(MethodError, faults)


def compute_patch(
    recipe: Recipe,
    plan: Plan,
    base: Checkpoint,
    models: Any,
    store: Store | None,
    *,
    tuned: Recipe | None = None,
) -> Computed:
    """The patch of a recipe. Every edit starts from the base, so their order changes nothing.

    Args:
        recipe: What to do.
        plan: Of this recipe on this base.
        base: The checkpoint the patch is for.
        models: Its pipeline, or any object with its parts; left as it was.
        store: Where batches are kept so that a killed run goes on; None keeps nothing.
        tuned: The recipe with what was tuned by pictures filled in; the patch remembers ``recipe`` itself.

    Raises:
        SurgeryError: when an edit cannot be computed.
    """
    outcomes, terms, elapsed = [], [], []
    labels: list[str] = []
    made: list[JSON] = []
    earlier = keys_of(recipe, base)
    for step, (name, entry) in zip(plan.steps, map(_only, (tuned or recipe).edits), strict=True):
        started = time.monotonic()
        _log.info("step %d of %d: %s", step.number, len(plan.steps), name)
        outcome = method(name).run(entry, recipe, base, models, store, earlier)
        elapsed.append(time.monotonic() - started)
        outcomes.append(outcome)
        source = f"{name} {step.identity}"
        if outcome.delta.terms:
            terms.append(Term(delta=outcome.delta, strength=1.0, source=source))
            labels.append(f"edits[{step.number - 1}] ({_kind_of(name, entry)})")
        if outcome.made:
            made.append({"source": source, **outcome.made})
    keys = [*(key for outcome in outcomes for key in outcome.keys), *earlier]
    told = {
        **provenance(recipe, plan),
        **({"keys": keys} if keys else {}),
        **({"made": made} if made else {}),
    }
    patch = make_patch(terms, base, told)
    findings = tuple(
        Finding(
            kind="shared-masks",
            subject=f"{labels[first]} and {labels[second]}",
            message=f"both mask {count} weights, of which the stronger mask counts; what one takes away the "
            "other cannot bring back.",
            severity="warning",
        )
        for first, second, count in shared_masks(terms)
    )
    for finding in findings:
        _log.warning("%s: %s", finding.subject, finding.message)
    return Computed(patch=patch, outcomes=tuple(outcomes), elapsed_s=tuple(elapsed), findings=findings)


def provenance(recipe: Recipe, plan: Plan) -> Mapping[str, JSON]:
    """What a patch remembers of its making: no clock, no host, no path but the recipe's own."""
    return {
        "recipe": recipe.source,
        "recipe_digest": recipe.digest,
        "overrides": recipe.overrides,
        "title": recipe.title,
        "seed": recipe.seed,
        "plan": plan.identity,
        "base": plan.base,
    }


def _kind_of(name: str, entry: Any) -> str:
    """A method and what it was asked to do, for people."""
    kind = getattr(entry, "kind", None)
    return name if kind is None else f"{name} {kind}"


def _only(edit: Edit) -> tuple[str, Any]:
    return edit.method, edit.entry
