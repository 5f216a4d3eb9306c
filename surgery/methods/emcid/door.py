"""The door of EMCID: edits and models in, a delta and its report out."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from surgery.anatomy import Span, fill, locate, text_stack, tokenize, weights_digest
from surgery.delta import Delta
from surgery.diffusion import device_and_dtype, is_offloaded
from surgery.errors import ConceptError, MethodError, raise_all
from surgery.methods.emcid.concepts import OBJECT_TEMPLATES, prepare
from surgery.methods.emcid.earlier import WrittenKey, still_valid
from surgery.methods.emcid.mixture import mixed, single
from surgery.methods.emcid.models import EmcidModels, Tower
from surgery.methods.emcid.nouns import Concept, ConceptEdit, warning
from surgery.methods.emcid.offsets import Target, check_models, findings_of, optimise_offsets
from surgery.methods.emcid.reports import EditReport, LayerReport
from surgery.methods.emcid.settings import (
    ConceptRules,
    CorpusSettings,
    OffsetSettings,
    UpdateSettings,
    check_settings,
)
from surgery.methods.emcid.statistics import KeyStatistics, collect_statistics
from surgery.methods.emcid.update import solve_updates
from surgery.record import Finding
from surgery.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmcidResult:
    """A joint edit of several concepts.

    ``edits`` are in the order in which the concepts were given, less those that were skipped, merged or left
    out; ``findings`` says which and why, and everything else that was noticed. ``targets`` are in the same
    order as ``edits``. ``edits_2`` are the same edits as SDXL's second text encoder took them. ``statistics``
    are by component.
    """

    delta: Delta
    edits: tuple[EditReport, ...]
    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]
    targets: tuple[Target, ...]
    statistics: Mapping[str, KeyStatistics]
    sweeps: int
    edits_2: tuple[EditReport, ...] = ()


def edit(
    models: EmcidModels,
    edits: Sequence[ConceptEdit],
    offsets: OffsetSettings,
    update: UpdateSettings,
    captions: Iterable[str],
    *,
    corpus: CorpusSettings | None = None,
    rules: ConceptRules | None = None,
    preserve: Sequence[str] = (),
    earlier: Sequence[WrittenKey] = (),
    statistics: Mapping[str, KeyStatistics] | None = None,
    store: Store | None = None,
    device: torch.device | str | None = None,
) -> EmcidResult:
    """The change of weights that makes every source mean its destination, all at once.

    The order of the edits changes nothing, not even the last bit. The models are read and never changed.

    Args:
        models: The unedited checkpoint.
        edits: What shall become what.
        offsets: Stage I, learning what to write.
        update: Stage II, writing it.
        captions: Ordinary prompts whose behaviour is kept: some thousand, or a ``CaptionFile`` of any size.
        corpus: Which of them and of their tokens count.
        rules: What to do with concepts that can be read in two ways.
        preserve: Names that must keep their meaning beyond what the captions protect.
        earlier: What the edits that the checkpoint has in it already wrote at; it is left where it is.
        statistics: Finished key statistics by component, in place of captions; those that name a source
            are in them, too.
        store: Where intermediate results are kept, so that a killed run goes on where it was.
        device: Where to compute, if not where the models lie: copies are moved, the models stay.

    Raises:
        ConceptError: when concepts are faulty or in conflict; all faults at once.
        MethodError: when settings or models do not fit, or no concept could be learned.
        NumericsError: when a system cannot be solved.

    Source: arXiv 2403.13807.
    """
    working = _working(models, device)
    concepts, kept, found = _prepared(working, edits, offsets, update, rules, preserve)
    corpus = corpus or CorpusSettings()
    # what a blend mixes keeps its meaning
    gone = () if corpus.include_sources else [one.source_ids for one in concepts if not one.parts]
    by_tower = _by_tower(working, update)
    known = {
        tower.component: _statistics(tower, captions, own, corpus, gone, statistics, store)
        for tower, own in by_tower
    }
    for tower in working.towers:
        found += _of(tower, known[tower.component].findings(tower.stack.mlp_width))
    first = working.towers[0].stack
    protected, notes = still_valid(earlier, concepts, first.vocabulary, first.positions)
    found += notes
    # batches are cut in an order of their own, so that the order of the recipe changes nothing
    ordered = sorted(concepts, key=rank)
    last_2 = None if update.layers_2 is None else update.layers_2[-1]
    learned = optimise_offsets(
        working, single(ordered), offsets, layer=update.layers[-1], layer_2=last_2, store=store
    )
    found += findings_of(learned, left_out=not offsets.keep_unconverged)
    targets = _usable(mixed(learned, ordered), offsets)
    stored = models.stored_dtype or text_stack(models.text_encoder).weight(0).dtype
    solved = [
        solve_updates(
            tower.encoder,
            own_targets,
            known[tower.component],
            own,
            preserve=kept,
            earlier=protected,
            stored=stored,
            digest=known[tower.component].encoder_digest,
            component=tower.component,
        )
        for (tower, own), own_targets in zip(by_tower, _by_encoder(targets, len(by_tower)), strict=True)
    ]
    for tower, update_ in zip(working.towers, solved, strict=True):
        found += _of(tower, update_.findings)
    _tell(found)
    back = _given_order(targets, concepts)
    edited = [tuple(one.edits[index] for index in back) for one in solved]
    return EmcidResult(
        delta=Delta({name: form for one in solved for name, form in one.delta.terms.items()}),
        edits=edited[0],
        edits_2=edited[1] if len(edited) > 1 else (),
        layers=tuple(report for one in solved for report in one.layers),
        findings=tuple(found),
        targets=tuple(targets[index] for index in back),
        statistics=known,
        sweeps=max(one.sweeps for one in solved),
    )


def _tell(findings: Iterable[Finding]) -> None:
    for finding in findings:
        level = logging.INFO if finding.severity == "info" else logging.WARNING
        _log.log(level, "%s: %s", finding.subject, finding.message)


def _by_tower(models: EmcidModels, update: UpdateSettings) -> list[tuple[Tower, UpdateSettings]]:
    """Each text encoder with the settings of its own layers."""
    layers = (update.layers, update.layers_2 or ())
    return [
        (tower, replace(update, layers=own, layers_2=None))
        for tower, own in zip(models.towers, layers, strict=False)
    ]


def _by_encoder(targets: Sequence[Target], encoders: int) -> list[list[Target]]:
    """The targets as the first text encoder sees them, and as the second does where there is one."""
    seconds = [target.second for target in targets if target.second is not None]
    return [list(targets), seconds][:encoders]


def _of(tower: Tower, findings: Iterable[Finding]) -> list[Finding]:
    """Findings with the text encoder they are about, where that is not the first."""
    if tower.component == "text_encoder":
        return list(findings)
    return [replace(found, subject=f"{found.subject} ({tower.component})") for found in findings]


def check_edit(
    models: EmcidModels,
    edits: Sequence[ConceptEdit],
    offsets: OffsetSettings,
    update: UpdateSettings,
    *,
    rules: ConceptRules | None = None,
    preserve: Sequence[str] = (),
) -> tuple[Concept, ...]:
    """The concepts that ``edit`` would work on; arguments as there.

    Raises:
        ConceptError: when concepts are faulty or in conflict; all faults at once.
        MethodError: when settings or models do not fit.
    """
    return _prepared(models, edits, offsets, update, rules, preserve)[0]


def _prepared(
    models: EmcidModels,
    edits: Sequence[ConceptEdit],
    offsets: OffsetSettings,
    update: UpdateSettings,
    rules: ConceptRules | None,
    preserve: Sequence[str],
) -> tuple[tuple[Concept, ...], list[Span], list[Finding]]:
    """The concepts, the prompts to preserve, and what was noticed about both."""
    stacks = [tower.stack for tower in models.towers]
    stack = stacks[0]
    check_settings(offsets, update, *(len(one.blocks) for one in stacks))
    concepts, findings = prepare(edits, models.tokenizer, limit=stack.positions, rules=rules)
    _refuse_other_vocabulary(concepts, models)
    check_models(models, single(concepts), offsets)
    kept, notes = _kept(preserve, concepts, models, stack.positions)
    return concepts, kept, [*findings, *notes]


def _statistics(
    tower: Tower,
    captions: Iterable[str],
    update: UpdateSettings,
    corpus: CorpusSettings,
    without: Sequence[tuple[int, ...]],
    given: Mapping[str, KeyStatistics] | None,
    store: Store | None,
) -> KeyStatistics:
    """The key statistics of the edited layers: the given ones where they fit, else of the captions."""
    if given is None:
        return collect_statistics(
            tower.encoder,
            tower.tokenizer,
            captions,
            update.layers,
            corpus,
            without=without,
            store=store,
        )
    known = given.get(tower.component)
    if known is None:
        raise MethodError(
            f"the key statistics are of {', '.join(given)}; expected those of the {tower.component} too. "
            "Collect them for this checkpoint."
        )
    known.check(tower.stack, weights_digest(tower.encoder), update.layers)
    return known


def _refuse_other_vocabulary(concepts: Sequence[Concept], models: EmcidModels) -> None:
    """Refuse a second tokenizer that splits a prompt otherwise: spans hold for both encoders.

    Raises:
        MethodError: naming every such prompt.
    """
    faults = []
    for tower in models.towers[1:]:
        for concept in concepts:
            for template, span in zip(concept.edit.templates, concept.spans, strict=True):
                prompt = fill(template, concept.edit.source)
                if tokenize(tower.tokenizer, prompt).ids[: span.end] != span.ids[: span.end]:
                    faults.append(
                        f"{prompt!r} has other tokens in the tokenizer of {tower.component}; expected "
                        "those of the first one. Are both of one SDXL?"
                    )
    raise_all(MethodError, faults)


def _working(models: EmcidModels, device: torch.device | str | None) -> EmcidModels:
    """The models in the type and place they are worked with: copies where that is not theirs already."""
    place = torch.device(device) if device is not None else device_and_dtype(models.text_encoder)[0]
    second = models.text_encoder_2
    return replace(
        models,
        text_encoder=_single_at(models.text_encoder, place),
        text_encoder_2=None if second is None else _single_at(second, place),
        unet=_at(models.unet, place),
        vae=_at(models.vae, place),
    )


def _single_at(encoder: torch.nn.Module, place: torch.device) -> torch.nn.Module:
    weight = text_stack(encoder).weight(0)
    # an offloaded encoder would leave while the U-Net draws
    if weight.dtype != torch.float32 or weight.device != place or is_offloaded(encoder):
        return copy.deepcopy(encoder).to(place, torch.float32)
    return encoder


def _at(module: torch.nn.Module | None, place: torch.device) -> torch.nn.Module | None:
    if module is None or device_and_dtype(module)[0] == place:
        return module
    return copy.deepcopy(module).to(place)


def _kept(
    names: Sequence[str], concepts: Sequence[Concept], models: EmcidModels, limit: int
) -> tuple[list[Span], list[Finding]]:
    edited = {concept.source_ids: concept for concept in concepts}
    spans, findings, faults = [], [], []
    by_tokens: dict[tuple[int, ...], str] = {}
    for name in names:
        by_tokens.setdefault(tokenize(models.tokenizer, name).ids[1:-1], name)
    # in an order of their own: neither their order nor their spelling changes the sums
    for ids, name in sorted(by_tokens.items()):
        concept = edited.get(ids)
        if concept is not None:
            message = f"it is the source of {concept.label} and cannot be preserved as well."
            findings.append(warning("preserved-source", name, message))
            continue
        try:
            spans += [locate(models.tokenizer, template, name, limit=limit) for template in OBJECT_TEMPLATES]
        except ConceptError as fault:
            faults.append(f"preserve {name!r}: {fault}")
    raise_all(ConceptError, faults)
    return spans, findings


def rank(concept: Concept) -> tuple[object, ...]:
    """The place of a concept among others, whatever order they were given in."""
    edit = concept.edit
    return concept.source_ids, concept.goal_ids or (), edit.templates, tuple(map(str, edit.images)), edit.seed


def _usable(targets: Sequence[Target], settings: OffsetSettings) -> list[Target]:
    kept = settings.keep_unconverged
    usable = [target for target in targets if target.finite and (target.converged or kept)]
    if targets and not usable:
        reasons = "; ".join(f"{finding.subject}: {finding.message}" for finding in findings_of(targets))
        raise MethodError(f"no concept could be learned. {reasons}")
    return usable


def _given_order(targets: Sequence[Target], concepts: Sequence[Concept]) -> list[int]:
    place = {id(concept): index for index, concept in enumerate(concepts)}
    return sorted(range(len(targets)), key=lambda index: place[id(targets[index].concept)])
