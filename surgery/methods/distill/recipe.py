"""Distillation as recipes ask for it: a recipe's entry to settings, and the result to an outcome."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from math import prod
from typing import Any

from surgery.anatomy import fill
from surgery.anatomy.components import components_of
from surgery.checkpoint import Checkpoint
from surgery.diffusion import derived_seed, sampler_faults
from surgery.errors import MethodError, raise_all
from surgery.methods import Outcome, Replacement
from surgery.methods.concepts import TEMPLATES
from surgery.methods.distill.door import distill
from surgery.methods.distill.settings import ESD, DistillConcept, DistillSettings, as_json, check_distill
from surgery.methods.training import refuse_half
from surgery.names import split
from surgery.recipe import Distill, Recipe, Rescaled
from surgery.record import JSON, Work
from surgery.store import Store


def settings_of(entry: Distill, recipe: Recipe) -> DistillSettings:
    """The preset's settings, or the method's own, with the keys that the entry gives."""
    usual = DistillSettings()
    if entry.preset == "esd":
        usual = ESD
    elif entry.preset == "closed-form":
        usual = DistillSettings(steps=0)
    return replace(usual, seed=recipe.seed, **entry.distillation.given())


def concepts_of(entry: Distill, recipe: Recipe) -> tuple[DistillConcept, ...]:
    """The entry's concepts; a seed left out follows from the recipe's seed and the concept's name."""
    return tuple(
        DistillConcept(
            name=one.source,
            prompts=tuple(fill(template, one.source) for template in one.templates or TEMPLATES),
            scale=_scale(one, entry),
            seed=derived_seed(recipe.seed, one.source) if one.seed is None else one.seed,
        )
        for one in entry.concepts
    )


def _scale(one: Rescaled, entry: Distill) -> float:
    if one.scale is not None:
        return one.scale
    return -1.0 if entry.preset == "esd" else 0.0


def names_of(entry: Distill, base: Checkpoint) -> tuple[str, ...]:
    """Weights that may change.

    Raises:
        MethodError: when an entry names none, or one of a text encoder, which all targets are read with.
    """
    usual = ("unet/*attn2*",) if entry.preset == "esd" else ("attn2_kv",)
    names = components_of(base.shapes, entry.components or usual, entry.leave_out)
    raise_all(
        MethodError,
        [
            f"components name {name!r}, which is no weight of the U-Net; expected some of those alone."
            for name in names
            if split(name)[0] != "unet"
        ][:1],
    )
    return names


def replacements(entry: Distill, recipe: Recipe) -> tuple[Replacement, ...]:
    """What the entry asks for: less of the concept, or more."""
    return tuple(
        Replacement(
            source=one.source,
            destination=None if _scale(one, entry) < 1 else one.source,
            kind="erase" if _scale(one, entry) < 1 else "amplify",
            taught=one.templates or TEMPLATES,
        )
        for one in entry.concepts
    )


def preserved(entry: Distill) -> tuple[str, ...]:
    """What the entry keeps."""
    return entry.preserve


def work(entry: Distill, recipe: Recipe, base: Checkpoint) -> Work:
    """What the entry will do, from headers alone."""
    settings, concepts = settings_of(entry, recipe), concepts_of(entry, recipe)
    check_distill(concepts, settings, entry.preserve)
    names = names_of(entry, base)
    draws = -(-settings.steps // settings.refresh)
    each = 3 if entry.preserve and settings.preserve_weight else 2
    points = settings.paths * settings.graded_steps
    trained = each * settings.steps * min(settings.batch, points)
    shapes = [base.shapes[name] for name in names] if settings.steps else []
    if settings.form == "factors":
        shapes = [(settings.rank, shape[0] + prod(shape[1:])) for shape in shapes]
    return Work(
        method="distill",
        meaning={
            "settings": as_json(settings),
            "concepts": [{**asdict(one), "prompts": list(one.prompts)} for one in concepts],
            "preserve": list(entry.preserve),
            "names": list(names),
        },
        sites=names,
        batches=(len(concepts),),
        cost={
            "unet_forwards": draws * (2 * settings.paths * settings.sampling_steps + each * points) + trained,
            "unet_backwards": trained,
            "weights_trained": sum(prod(shape) for shape in shapes),
        },
    )


def check(entry: Distill, recipe: Recipe, base: Checkpoint, models: Any) -> Mapping[Hashable, str]:
    """Refuse faulty concepts and settings before any work; labels by the names in lower case.

    Raises:
        MethodError: as ``distill``.
    """
    concepts = concepts_of(entry, recipe)
    settings = settings_of(entry, recipe)
    check_distill(concepts, settings, entry.preserve)
    names_of(entry, base)
    if settings.steps:
        refuse_half(models.unet)
    raise_all(MethodError, sampler_faults(models, settings.sampling_steps))
    return {("distill", one.name.casefold()): one.name for one in concepts}


def run(
    entry: Distill,
    recipe: Recipe,
    base: Checkpoint,
    models: Any,
    store: Store | None,
    earlier: Sequence[JSON] = (),
) -> Outcome:
    """The change of all of the entry's concepts together; ``models`` is the base's pipeline."""
    settings, concepts = settings_of(entry, recipe), concepts_of(entry, recipe)
    found = distill(models, concepts, names_of(entry, base), settings, preserve=entry.preserve, store=store)
    last = found.losses[-max(1, len(found.losses) // 10) :]
    return Outcome(
        delta=found.delta,
        replacements=replacements(entry, recipe),
        preserved=preserved(entry),
        report={
            "method": "distill",
            "scales": {one.name: one.scale for one in concepts},
            "closed_form_rank": found.rank,
            "steps": len(found.losses),
            "first_loss": found.losses[0] if found.losses else None,
            "last_loss": sum(last) / len(last) if last else None,
        },
    )
