"""Component attribution as recipes ask for it: a recipe's entry to settings, and the result to an outcome."""

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from surgery.anatomy import fill
from surgery.anatomy.components import components_of
from surgery.checkpoint import Checkpoint
from surgery.diffusion import derived_seed, load_picture
from surgery.methods import Outcome, Replacement
from surgery.methods.cad.door import check_edit, edit
from surgery.methods.cad.maker import LISTED
from surgery.methods.cad.nouns import PUBLISHED_TEMPLATES, CadConcept
from surgery.methods.cad.paths import sampler_rows
from surgery.methods.cad.retained import PROBES
from surgery.methods.cad.settings import (
    PRESETS,
    AttributionSettings,
    CadSettings,
    SelectionSettings,
    aimed,
    as_json,
    denoising,
)
from surgery.methods.cad.trial import growing_rows, trial_rows
from surgery.methods.concepts import TEMPLATES
from surgery.recipe import Cad, Recipe
from surgery.recipe.cad import Attributed
from surgery.record import JSON, Finding, Work, file_digest
from surgery.store import Store

_log = logging.getLogger(__name__)


def settings_of(entry: Cad) -> CadSettings:
    """The preset's settings, or the method's own for this kind, with the keys that the entry gives."""
    attribution, selection = PRESETS[entry.preset] if entry.preset else _usual(entry)
    return CadSettings(
        attribution=replace(attribution, **entry.attribution.given()),
        selection=replace(selection, **entry.selection.given()),
        polarity="positive" if entry.kind == "erase" else "negative",
        combine=entry.combine,
        controls=entry.controls,
        micro_batch=entry.micro_batch,
        batch=entry.batch,
        checkpointing=entry.checkpointing,
    )


def _usual(entry: Cad) -> tuple[AttributionSettings, SelectionSettings]:
    objective = entry.attribution.objective or ("base_gap" if entry.kind == "erase" else "denoise")
    if objective == "base_gap":
        return AttributionSettings(), SelectionSettings()
    return denoising(min(len(one.images) for one in entry.concepts)), SelectionSettings()


def concepts_of(entry: Cad, recipe: Recipe) -> tuple[CadConcept, ...]:
    """The entry's concepts; a seed left out follows from the recipe's seed and the concept's name."""
    usual = _templates(entry)
    return tuple(_concept(one, recipe, usual) for one in entry.concepts)


def _templates(entry: Cad) -> tuple[str, ...]:
    return PUBLISHED_TEMPLATES if entry.preset in ("published-erase", "published-amplify") else TEMPLATES


def _concept(one: Attributed, recipe: Recipe, templates: tuple[str, ...]) -> CadConcept:
    return CadConcept(
        name=one.source,
        prompts=tuple(fill(template, one.source) for template in one.templates or templates),
        images=tuple(recipe.file(name) for name in one.images),
        seed=derived_seed(recipe.seed, one.source) if one.seed is None else one.seed,
    )


def retained(entry: Cad, recipe: Recipe) -> tuple[CadConcept, ...]:
    """The concepts that must stay."""
    usual = _templates(entry)
    return tuple(_concept(Attributed(source=name), recipe, usual) for name in entry.retain)


def replacements(entry: Cad, recipe: Recipe) -> tuple[Replacement, ...]:
    """What the entry asks for: nothing in particular in a concept's place, or more of it.

    Of a difference the first concept alone; the others are what stays.
    """
    return tuple(
        Replacement(
            source=one.source,
            destination=one.source if entry.kind == "amplify" else None,
            kind=entry.kind,
            pictures=bool(one.images),
        )
        for one in aimed(entry.concepts, entry.combine)
    )


def preserved(entry: Cad) -> tuple[str, ...]:
    """What the entry keeps, with what a difference spares."""
    spared = (one.source for one in entry.concepts[len(aimed(entry.concepts, entry.combine)) :])
    return tuple(dict.fromkeys([*entry.retain, *spared]))


def work(entry: Cad, recipe: Recipe, base: Checkpoint) -> Work:
    """What the entry will do, from headers alone."""
    settings, concepts, kept = settings_of(entry), concepts_of(entry, recipe), retained(entry, recipe)
    check_edit(concepts, settings, kept)
    names = components_of(base.shapes, entry.components, entry.leave_out)
    attribution = settings.attribution
    meaning: dict[str, JSON] = {
        "attribution": as_json(attribution),
        "selection": as_json(settings.selection),
        "polarity": settings.polarity,
        "combine": settings.combine,
        "names": list(names),
        "concepts": [_meaning(one) for one in concepts],
        "retain": [_meaning(one) for one in kept],
        "passes": [settings.micro_batch, settings.batch, settings.checkpointing],
    }
    everyone = (*concepts, *kept)
    drawn = [one for one in everyone if not one.images]
    tried = len(aimed(concepts, settings.combine))
    trials = trial_rows(attribution, tried, drawn=bool(drawn)) if settings.controls else 0
    if settings.selection.left is not None:
        trials += growing_rows(attribution, len(concepts), LISTED)
    probed = len(kept) * attribution.pairs * PROBES if settings.selection.ranking == "damage" else 0
    return Work(
        method="cad",
        meaning=meaning,
        sites=names,
        batches=(1,) * len(concepts),
        cost={
            "unet_forwards": len(drawn) * sampler_rows(attribution) + trials,
            "unet_backwards": sum(_graded(attribution, one) for one in everyone) + probed,
            "weights_scored": sum(prod(base.shapes[name]) for name in names),
        },
        masks=True,
    )


def _graded(settings: AttributionSettings, concept: CadConcept) -> int:
    """Noisy pictures of a concept that gradients are taken at."""
    return settings.graded_steps * len(concept.images) if concept.images else settings.pairs


def _meaning(concept: CadConcept) -> dict[str, JSON]:
    return {
        "prompts": list(concept.prompts),
        "seed": concept.seed,
        "images": [file_digest(path) for path in concept.images],
    }


def check(entry: Cad, recipe: Recipe, base: Checkpoint, models: Any) -> Mapping[Hashable, str]:
    """Refuse faulty concepts and settings before any work; labels by the names in lower case.

    Raises:
        MethodError: as ``door.edit``.
    """
    concepts = concepts_of(entry, recipe)
    check_edit(concepts, settings_of(entry), retained(entry, recipe))
    components_of(base.shapes, entry.components, entry.leave_out)
    for concept in concepts:
        for path in concept.images:
            load_picture(path, 8, 8)  # a broken one is said before hours of work
    return {("cad", one.source.casefold()): one.source for one in aimed(entry.concepts, entry.combine)}


def _of_erased(recipe: Recipe, settings: CadSettings, concepts: Sequence[CadConcept]) -> Iterator[Finding]:
    """Pictures that an edited checkpoint draws of what an earlier edit may have taken away."""
    if not recipe.after or settings.attribution.objective != "denoise":
        return
    for concept in concepts:
        if not concept.images:
            yield Finding(
                kind="drawn-when-erased",
                subject=concept.name,
                message="its pictures are drawn by the edited checkpoint, which may no longer show it. To "
                "bring back what an earlier patch erased, give pictures of it (images), as drawn before.",
                severity="warning",
            )


def run(
    entry: Cad,
    recipe: Recipe,
    base: Checkpoint,
    models: Any,
    store: Store | None,
    earlier: Sequence[JSON] = (),
) -> Outcome:
    """The masks of all of the entry's concepts as one change; ``models`` is the base's pipeline."""
    settings, concepts = settings_of(entry), concepts_of(entry, recipe)
    names = components_of(base.shapes, entry.components, entry.leave_out)
    result = edit(models, concepts, names, settings, retain=retained(entry, recipe), store=store)
    found = tuple(_of_erased(recipe, settings, concepts))
    for finding in found:
        _log.warning("%s: %s", finding.subject, finding.message)
    return Outcome(
        delta=result.delta,
        replacements=replacements(entry, recipe),
        preserved=preserved(entry),
        report={
            "method": "cad",
            "kind": entry.kind,
            "components": len(names),
            "masks": [mask.as_json() for mask in result.masks],
        },
        findings=(*result.findings, *found),
        lines=tuple(line for mask in result.masks for line in mask.lines()),
        made={
            "method": "cad",
            "polarity": settings.polarity,
            "sign": "a positive score: without the weight, the measure falls",
            "attribution": as_json(settings.attribution),
            "selection": as_json(settings.selection),
            "combine": settings.combine,
            "masks": [
                {
                    "concepts": list(mask.concepts),
                    "weights": mask.mask.count,
                    "ratio": mask.ratio,
                    "measures": [[one.measure, one.deviation, one.pairs] for one in mask.facts],
                }
                for mask in result.masks
            ],
        },
    )
