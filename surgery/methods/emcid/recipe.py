"""EMCID as recipes ask for it: a recipe's entry to settings, and the result to an outcome."""

import hashlib
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from surgery.checkpoint import Checkpoint
from surgery.errors import MethodError
from surgery.methods import Outcome, Replacement
from surgery.methods.emcid.concepts import OBJECT_TEMPLATES, STYLE_TEMPLATES
from surgery.methods.emcid.corpus import CaptionFile
from surgery.methods.emcid.debias import (
    DEBIAS_TEMPLATES,
    debias_json,
    groups_of,
    is_debiasing,
    preserved,
    refuse_untuned,
    untuned,
    with_mixtures,
)
from surgery.methods.emcid.distance import distant_weights
from surgery.methods.emcid.door import EmcidResult, check_edit, edit
from surgery.methods.emcid.earlier import keys_from, written_by
from surgery.methods.emcid.layers import blocks, default_layers, site, text_components
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.nouns import ConceptEdit, Kind
from surgery.methods.emcid.settings import (
    PUBLISHED,
    PUBLISHED_XL,
    RELEASED_CORPUS,
    ConceptRules,
    CorpusSettings,
    OffsetSettings,
    UpdateSettings,
    as_json,
    check_settings,
)
from surgery.methods.emcid.statistics import KeyStatistics
from surgery.methods.emcid.statistics_file import load_statistics
from surgery.methods.emcid.tuning import pictures_needed
from surgery.recipe import Emcid, Recipe
from surgery.recipe.emcid import Kind as RecipeKind
from surgery.record import JSON, Work, file_digest
from surgery.store import Store

# Five blocks stay behind the last edited one, in which the later tokens read the subject; with the published
# eleven there is one, and what cross-attention reads keeps several times as far from the destination's. One
# row of each concept a step and a rate that falls to nothing do in 48 steps what takes all rows 120. Offsets
# end on the clamp, and what they do to other concepts goes with their length: of 152 joint updates it cost
# held-out concepts 11 points at 1.5 and 3 at 1.0. Further sweeps reach more of each offset and harm as much
# as a smaller ridge.
_POCKET: Final = (
    OffsetSettings(
        metric="cross_attention",
        steps=48,
        rows_per_step=1,
        learning_rate=1.5,
        decay="cosine",
        patience=None,
        norm_penalty=0.05,
        clamp=1.1,
        bank_size=6,
        sampling_steps=10,
    ),
    UpdateSettings(layers=tuple(range(7))),
)

PRESETS: Final[Mapping[str, tuple[OffsetSettings, UpdateSettings]]] = MappingProxyType(
    {
        "pocket": _POCKET,
        "published-sdxl": PUBLISHED_XL,
        **{f"published-{name}": settings for name, settings in PUBLISHED.items()},
    }
)
_POCKET_CAPTIONS: Final = "captions.txt"
_CLAMP_XL: Final = 1.2  # as released
_FILES: Final = ("captions", "statistics")
_CORPUS: Final = CorpusSettings(count=5000)


def settings_of(entry: Emcid, base: Checkpoint) -> tuple[OffsetSettings, UpdateSettings]:
    """The preset's settings, or the method's own for this family, with the keys that the entry gives."""
    first, *others = text_components(base)
    offsets, update = PRESETS[entry.preset] if entry.preset else (OffsetSettings(), UpdateSettings())
    if not entry.preset:
        update = replace(update, layers=default_layers(base, first))
        offsets = replace(offsets, clamp=_CLAMP_XL) if others else offsets
    if others and update.layers_2 is None:
        update = replace(update, layers_2=default_layers(base, others[0]))
    return replace(offsets, **entry.offsets.given()), replace(update, **entry.update.given())


def edits_of(entry: Emcid, recipe: Recipe) -> tuple[ConceptEdit, ...]:
    """The entry's concepts; a seed left out follows from the recipe's seed and the concept's name."""
    return tuple(
        ConceptEdit(
            source=concept.source,
            destination=concept.destination,
            kind=_kind(concept.kind or entry.kind),
            templates=concept.templates or (() if concept.shares is None else DEBIAS_TEMPLATES),
            weight=concept.weight,
            images=tuple(recipe.file(name) for name in concept.images),
            seed=_seed(recipe.seed, concept.source) if concept.seed is None else concept.seed,
            blend=tuple((group.phrase, group.weight) for group in groups_of(concept, entry)),
        )
        for concept in entry.concepts
    )


def _kind(kind: RecipeKind) -> Kind:
    """A debiased concept is updated to several destinations at once."""
    return "update" if kind == "debias" else kind


def work(entry: Emcid, recipe: Recipe, base: Checkpoint) -> Work:
    """What the entry will do, from headers alone."""
    offsets, update = settings_of(entry, base)
    components = text_components(base)
    check_settings(offsets, update, *(blocks(base, component) for component in components))
    edits = edits_of(entry, recipe)
    learned = sum(len(edit_.blend) or 1 for edit_ in edits)
    full, rest = divmod(learned, offsets.batch)
    meaning: dict[str, JSON] = {
        "offsets": as_json(offsets),
        "update": as_json(update),
        "corpus": as_json(corpus_of(entry)),
        "rules": as_json(_rules(entry)),
        "captions": file_digest(_source_of(entry, recipe, base)),
        "preserve": sorted(preserved(entry)),
        "edits": sorted((_edit_json(edit_) for edit_ in edits), key=str),
    }
    if is_debiasing(entry):
        meaning["debias"] = debias_json(entry)
    return Work(
        method="emcid",
        meaning=meaning,
        sites=tuple(
            site(component, layer)
            for component, layers in zip(components, (update.layers, update.layers_2 or ()), strict=False)
            for layer in layers
        ),
        batches=(offsets.batch,) * full + ((rest,) if rest else ()),
        cost=_cost(edits, offsets) | _tuning_cost(entry),
    )


def _tuning_cost(entry: Emcid) -> dict[str, int]:
    """About so many pictures to find mixtures, when it takes all rounds; more where many are undecided."""
    wanted, knobs = untuned(entry), entry.debias
    if not wanted or knobs.tuning != "pictures":
        return {}
    each = max(knobs.pictures, pictures_needed(knobs.tolerance, knobs.interval))
    return {"tuning_pictures": knobs.rounds * each * len(wanted)}


def check(entry: Emcid, recipe: Recipe, base: Checkpoint, models: Any) -> dict[Hashable, str]:
    """Refuse faulty concepts, settings and models before any work; labels by the sources' tokens.

    Raises:
        SurgeryError: as ``door.edit``.
    """
    offsets, update = settings_of(entry, base)
    if _statistics(entry, recipe) is None:
        captions = CaptionFile(path=_captions_path(entry, recipe, base))
        deque(islice(captions, corpus_of(entry).count), maxlen=0)  # that they are there, and text
    edits, rules = edits_of(entry, recipe), _rules(entry)
    concepts = check_edit(_models(models), edits, offsets, update, rules=rules, preserve=preserved(entry))
    return {concept.source_ids: concept.label for concept in concepts}


def run(
    entry: Emcid,
    recipe: Recipe,
    base: Checkpoint,
    models: Any,
    store: Store | None,
    earlier: Sequence[JSON] = (),
) -> Outcome:
    """The joint edit of all of the entry's concepts; ``models`` is the base's pipeline and stays as it is."""
    offsets, update = settings_of(entry, base)
    if entry.debias.tuning == "distance":
        entry = with_mixtures(entry, distant_mixtures(entry, recipe, base, models, store))
    refuse_untuned(entry)
    statistics = _statistics(entry, recipe)
    captions = () if statistics else CaptionFile(path=_captions_path(entry, recipe, base))
    stored = base.entry(site("text_encoder", update.layers[0])).dtype
    result = edit(
        replace(_models(models), stored_dtype=stored),
        edits_of(entry, recipe),
        offsets,
        update,
        captions,
        corpus=corpus_of(entry),
        statistics=statistics,
        rules=_rules(entry),
        preserve=preserved(entry),
        earlier=keys_from(earlier),
        store=store,
    )
    return Outcome(
        delta=result.delta,
        replacements=tuple(_replacement(target.concept.edit, entry) for target in result.targets),
        preserved=preserved(entry),
        keys=tuple(key.as_json() for key in written_by(result.targets)),
        report=_report(result),
        findings=result.findings,
    )


def _models(pipeline: Any) -> EmcidModels:
    return EmcidModels(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
        text_encoder_2=getattr(pipeline, "text_encoder_2", None),
        tokenizer_2=getattr(pipeline, "tokenizer_2", None),
        config=getattr(pipeline, "config", None),
    )


def corpus_of(entry: Emcid) -> CorpusSettings:
    """The preset's choice of tokens, with the keys that the entry gives on top."""
    start = RELEASED_CORPUS if (entry.preset or "").startswith("published-") else _CORPUS
    given = {name: value for name, value in entry.corpus.given().items() if name not in _FILES}
    return replace(start, **given)


def _source_of(entry: Emcid, recipe: Recipe, base: Checkpoint) -> Path:
    """The file that the key statistics come from: captions, or finished statistics."""
    if entry.corpus.statistics is not None:
        return recipe.file(entry.corpus.statistics)
    return _captions_path(entry, recipe, base)


def _statistics(entry: Emcid, recipe: Recipe) -> dict[str, KeyStatistics] | None:
    if entry.corpus.statistics is None:
        return None
    return load_statistics(recipe.file(entry.corpus.statistics), shrinkage=corpus_of(entry).shrinkage)


def _rules(entry: Emcid) -> ConceptRules:
    return ConceptRules(merged_spans=entry.rules.merged_spans, conflicts=entry.rules.conflicts)


def _captions_path(entry: Emcid, recipe: Recipe, base: Checkpoint) -> Path:
    named = entry.corpus.captions
    path = base.path / _POCKET_CAPTIONS if named == "pocket" else recipe.file(named)
    if not path.is_file():
        raise MethodError(
            f"no captions at {path}; EMCID keeps what ordinary captions mean and needs some thousands. "
            "Name a text file with one caption per line as corpus.captions."
        )
    return path


def _seed(seed: int, source: str) -> int:
    """A seed of the concept's own, so that neither order nor company changes its noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{source}".encode()).digest()[:6])


def _edit_json(concept: ConceptEdit) -> dict[str, JSON]:
    plain: dict[str, JSON] = {
        "source": concept.source,
        "destination": concept.destination,
        "kind": concept.kind,
        "templates": list(concept.templates),
        "weight": concept.weight,
        "images": [file_digest(path) for path in concept.images],
        "seed": concept.seed,
    }
    if concept.blend:
        plain["blend"] = [list(part) for part in concept.blend]
    return plain


def _cost(edits: tuple[ConceptEdit, ...], offsets: OffsetSettings) -> dict[str, int]:
    """At most so many prompts through the UNet; early stops make it less."""
    prompts = sum(
        (len(concept.blend) or 1) * offsets.view_count(len(_templates(concept)), len(concept.images))
        for concept in edits
    )
    if offsets.mode == "text":
        return {"text_prompts": prompts * (offsets.steps + 1)}
    drawn = 0 if offsets.images in ("none", "given") else prompts * offsets.sampling_steps * 2
    steps = offsets.steps - (offsets.text_steps if offsets.mode == "both" else 0)
    teacher = prompts * (offsets.bank_size or steps)
    asked = steps * sum(
        offsets.rows_at_once(offsets.view_count(len(_templates(concept)), len(concept.images)))
        for concept in edits
    )
    return {
        "text_prompts": prompts * (offsets.steps + 1),
        "unet_forwards": drawn + teacher,
        "unet_forwards_and_backwards": asked,
    }


def _templates(concept: ConceptEdit) -> tuple[str, ...]:
    return concept.templates or (STYLE_TEMPLATES if concept.kind == "style" else OBJECT_TEMPLATES)


def distant_mixtures(
    entry: Emcid, recipe: Recipe, base: Checkpoint, models: Any, store: Store | None
) -> dict[str, tuple[float, ...]]:
    """The mixture of each debiased concept that gives none, from distances alone: no picture is drawn."""
    offsets, update = settings_of(entry, base)
    wanted = untuned(entry)
    if not wanted:
        return {}
    return distant_weights(
        _models(models),
        edits_of(entry, recipe),
        {source: tuple(group.share for group in groups) for source, groups in wanted.items()},
        offsets,
        layer=update.layers[-1],
        reach=entry.debias.reach,
        store=store,
    )


def replacements(entry: Emcid, recipe: Recipe) -> tuple[Replacement, ...]:
    """What the entry asks for, before anything of it is left out."""
    return tuple(_replacement(asked, entry) for asked in edits_of(entry, recipe))


def _replacement(asked: ConceptEdit, entry: Emcid) -> Replacement:
    """Styles are looked for in prompts that name one, everything else in the measurement's own prompts."""
    groups = {concept.source: groups_of(concept, entry) for concept in entry.concepts}
    return Replacement(
        source=asked.source,
        destination=asked.destination or None,
        kind="debias" if asked.blend else asked.kind,
        templates=asked.templates if asked.kind == "style" else (),
        pictures=bool(asked.images),
        groups=groups[asked.source] if asked.blend else (),
        asked_as=entry.debias.asked_as if asked.blend else "{}",
        taught=_templates(asked),
    )


def _report(result: EmcidResult) -> dict[str, JSON]:
    second: dict[str, JSON] = {"edits_2": [asdict(report) for report in result.edits_2]}
    return {
        "method": "emcid",
        "sweeps": result.sweeps,
        "corpus_tokens": result.statistics["text_encoder"].token_count,
        "mixtures": {
            target.concept.edit.source: dict(target.concept.edit.blend)
            for target in result.targets
            if target.concept.edit.blend
        },
        "edits": [asdict(report) for report in result.edits],
        **(second if result.edits_2 else {}),
        "layers": [asdict(report) for report in result.layers],
    }
