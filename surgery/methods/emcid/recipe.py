"""EMCID as recipes ask for it: a recipe's entry to settings, and the result to an outcome."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from surgery.checkpoint import Checkpoint
from surgery.errors import MethodError
from surgery.methods import Outcome, Replacement
from surgery.methods.emcid.concepts import OBJECT_TEMPLATES, STYLE_TEMPLATES
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
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.nouns import ConceptEdit, Kind
from surgery.methods.emcid.settings import (
    PUBLISHED,
    RELEASED_CORPUS,
    ConceptRules,
    CorpusSettings,
    OffsetSettings,
    UpdateSettings,
    as_json,
    check_settings,
)
from surgery.names import canonical
from surgery.recipe import Emcid, Recipe
from surgery.recipe.emcid import Kind as RecipeKind
from surgery.record import JSON, Work
from surgery.store import Store

# Five blocks stay behind the last edited one, in which the later tokens read the subject; with the published
# eleven there is one, and what cross-attention reads keeps several times as far from the destination's. With
# this penalty no offset ends on the clamp, and the effect is the same.
_POCKET: Final = (
    OffsetSettings(metric="cross_attention", learning_rate=0.6, norm_penalty=0.05),
    UpdateSettings(layers=tuple(range(7)), sweeps=3, attained_share=0.99),
)

PRESETS: Final[Mapping[str, tuple[OffsetSettings, UpdateSettings]]] = MappingProxyType(
    {
        "pocket": _POCKET,
        **{f"published-{name}": settings for name, settings in PUBLISHED.items()},
    }
)
_POCKET_CAPTIONS: Final = "captions.txt"
_CORPUS: Final = CorpusSettings(count=5000)


def settings_of(entry: Emcid) -> tuple[OffsetSettings, UpdateSettings]:
    """The preset's settings, or the method's own defaults, with the keys that the entry gives on top."""
    offsets, update = PRESETS[entry.preset] if entry.preset else (OffsetSettings(), UpdateSettings())
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
    offsets, update = settings_of(entry)
    check_settings(offsets, update, _blocks(base))
    edits, captions = edits_of(entry, recipe), _captions_path(entry, recipe, base)
    learned = sum(len(edit_.blend) or 1 for edit_ in edits)
    full, rest = divmod(learned, offsets.batch)
    meaning: dict[str, JSON] = {
        "offsets": as_json(offsets),
        "update": as_json(update),
        "corpus": as_json(corpus_of(entry)),
        "rules": as_json(_rules(entry)),
        "captions": _digest(captions),
        "preserve": sorted(preserved(entry)),
        "edits": sorted((_edit_json(edit_) for edit_ in edits), key=str),
    }
    if is_debiasing(entry):
        meaning["debias"] = debias_json(entry)
    return Work(
        method="emcid",
        meaning=meaning,
        sites=tuple(_site(layer) for layer in update.layers),
        batches=(offsets.batch,) * full + ((rest,) if rest else ()),
        cost=_cost(edits, offsets),
    )


def check(entry: Emcid, recipe: Recipe, base: Checkpoint, models: Any) -> dict[Hashable, str]:
    """Refuse faulty concepts, settings and models before any work; labels by the sources' tokens.

    Raises:
        SurgeryError: as ``door.edit``.
    """
    offsets, update = settings_of(entry)
    read_captions(_captions_path(entry, recipe, base))
    edits, rules = edits_of(entry, recipe), _rules(entry)
    concepts = check_edit(_models(models), edits, offsets, update, rules=rules, preserve=preserved(entry))
    return {concept.source_ids: concept.label for concept in concepts}


def run(entry: Emcid, recipe: Recipe, base: Checkpoint, models: Any, store: Store | None) -> Outcome:
    """The joint edit of all of the entry's concepts; ``models`` is the base's pipeline and stays as it is."""
    offsets, update = settings_of(entry)
    if entry.debias.tuning == "distance":
        entry = with_mixtures(entry, distant_mixtures(entry, recipe, models, store))
    refuse_untuned(entry)
    captions = read_captions(_captions_path(entry, recipe, base))
    stored = base.entry(_site(update.layers[0])).dtype
    result = edit(
        replace(_models(models), stored_dtype=stored),
        edits_of(entry, recipe),
        offsets,
        update,
        captions,
        corpus=corpus_of(entry),
        rules=_rules(entry),
        preserve=preserved(entry),
        store=store,
    )
    return Outcome(
        delta=result.delta,
        replacements=_replacements(result, entry),
        preserved=preserved(entry),
        report=_report(result),
        findings=result.findings,
    )


def _site(layer: int) -> str:
    return canonical("text_encoder", f"text_model.encoder.layers.{layer}.mlp.fc2.weight")


def _blocks(base: Checkpoint) -> int:
    """How many blocks the base's text encoder has."""
    found = next((layer for layer in count() if _site(layer) not in base.tensors), 0)
    if found == 0:
        raise MethodError(
            f"{base.path} has no text encoder of CLIP's kind; EMCID edits its feed-forward layers."
        )
    return found


def _models(pipeline: Any) -> EmcidModels:
    return EmcidModels(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
    )


def corpus_of(entry: Emcid) -> CorpusSettings:
    """The preset's choice of tokens, with the keys that the entry gives on top."""
    start = RELEASED_CORPUS if (entry.preset or "").startswith("published-") else _CORPUS
    given = entry.corpus.given()
    return replace(start, **{name: value for name, value in given.items() if name != "captions"})


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


def read_captions(path: Path) -> list[str]:
    """One caption per line; empty lines and a byte order mark are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MethodError(f"{path}: byte {error.start} is no UTF-8. Save the captions as UTF-8.") from error
    return [line for line in lines if line.strip()]


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
        "images": [_digest(path) for path in concept.images],
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
    teacher = prompts * (offsets.bank_size or offsets.steps)
    return {
        "text_prompts": prompts * (offsets.steps + 1),
        "unet_forwards": drawn + teacher,
        "unet_forwards_and_backwards": prompts * offsets.steps,
    }


def _templates(concept: ConceptEdit) -> tuple[str, ...]:
    return concept.templates or (STYLE_TEMPLATES if concept.kind == "style" else OBJECT_TEMPLATES)


def distant_mixtures(
    entry: Emcid, recipe: Recipe, models: Any, store: Store | None
) -> dict[str, tuple[float, ...]]:
    """The mixture of each debiased concept that gives none, from distances alone: no picture is drawn."""
    offsets, update = settings_of(entry)
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


def _replacements(result: EmcidResult, entry: Emcid) -> tuple[Replacement, ...]:
    """Styles are looked for in prompts that name one, everything else in the measurement's own prompts."""
    groups = {concept.source: groups_of(concept, entry) for concept in entry.concepts}
    found = []
    for target in result.targets:
        asked = target.concept.edit
        found.append(
            Replacement(
                source=asked.source,
                destination=asked.destination or None,
                kind="debias" if asked.blend else asked.kind,
                templates=asked.templates if asked.kind == "style" else (),
                pictures=bool(asked.images),
                groups=groups[asked.source] if asked.blend else (),
                asked_as=entry.debias.asked_as if asked.blend else "{}",
            )
        )
    return tuple(found)


def _report(result: EmcidResult) -> dict[str, JSON]:
    return {
        "method": "emcid",
        "sweeps": result.sweeps,
        "corpus_tokens": result.statistics.token_count,
        "mixtures": {
            target.concept.edit.source: dict(target.concept.edit.blend)
            for target in result.targets
            if target.concept.edit.blend
        },
        "edits": [asdict(report) for report in result.edits],
        "layers": [asdict(report) for report in result.layers],
    }
