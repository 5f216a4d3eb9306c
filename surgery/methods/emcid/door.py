"""The door of EMCID: edits and models in, a delta and its report out."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from surgery.anatomy import Span, locate, text_stack, tokenize, weights_digest
from surgery.delta import Delta
from surgery.diffusion import device_and_dtype, is_offloaded
from surgery.errors import ConceptError, MethodError, raise_all
from surgery.methods.emcid.concepts import OBJECT_TEMPLATES, prepare
from surgery.methods.emcid.mixture import mixed, single
from surgery.methods.emcid.models import EmcidModels
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
    order as ``edits``.
    """

    delta: Delta
    edits: tuple[EditReport, ...]
    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]
    targets: tuple[Target, ...]
    statistics: KeyStatistics
    sweeps: int


def edit(
    models: EmcidModels,
    edits: Sequence[ConceptEdit],
    offsets: OffsetSettings,
    update: UpdateSettings,
    captions: Sequence[str],
    *,
    corpus: CorpusSettings | None = None,
    rules: ConceptRules | None = None,
    preserve: Sequence[str] = (),
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
        captions: Ordinary prompts whose behaviour is kept; some thousand.
        corpus: Which of their tokens count.
        rules: What to do with concepts that can be read in two ways.
        preserve: Names that must keep their meaning beyond what the captions protect.
        store: Where intermediate results are kept, so that a killed run goes on where it was.
        device: Where to compute, if not where the models lie: copies are moved, the models stay.

    Raises:
        ConceptError: when concepts are faulty or in conflict; all faults at once.
        MethodError: when settings or models do not fit, or no concept could be learned.
        NumericsError: when a system cannot be solved.

    Source: arXiv 2403.13807.
    """
    working = _working(models, device)
    stack = text_stack(working.text_encoder)
    concepts, kept, found = _prepared(working, edits, offsets, update, rules, preserve)
    digest = weights_digest(working.text_encoder)
    statistics = collect_statistics(
        working.text_encoder,
        working.tokenizer,
        captions,
        update.layers,
        corpus,
        store=store,
        digest=digest,
    )
    found += statistics.findings(stack.mlp_width)
    # batches are cut in an order of their own, so that the order of the recipe changes nothing
    ordered = sorted(concepts, key=rank)
    learned = optimise_offsets(working, single(ordered), offsets, layer=update.layers[-1], store=store)
    found += findings_of(learned, left_out=not offsets.keep_unconverged)
    targets = _usable(mixed(learned, ordered), offsets)
    solved = solve_updates(
        working.text_encoder,
        targets,
        statistics,
        update,
        preserve=kept,
        stored=models.stored_dtype or text_stack(models.text_encoder).weight(0).dtype,
        digest=digest,
    )
    found += solved.findings
    for finding in found:
        _log.log(
            logging.INFO if finding.severity == "info" else logging.WARNING,
            "%s: %s",
            finding.subject,
            finding.message,
        )
    back = _given_order(targets, concepts)
    return EmcidResult(
        delta=solved.delta,
        edits=tuple(solved.edits[index] for index in back),
        layers=solved.layers,
        findings=tuple(found),
        targets=tuple(targets[index] for index in back),
        statistics=statistics,
        sweeps=solved.sweeps,
    )


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
    stack = text_stack(models.text_encoder)
    check_settings(offsets, update, len(stack.blocks))
    concepts, findings = prepare(edits, models.tokenizer, limit=stack.positions, rules=rules)
    check_models(models, single(concepts), offsets)
    kept, notes = _kept(preserve, concepts, models, stack.positions)
    return concepts, kept, [*findings, *notes]


def _working(models: EmcidModels, device: torch.device | str | None) -> EmcidModels:
    """The models in the type and place they are worked with: copies where that is not theirs already."""
    weight = text_stack(models.text_encoder).weight(0)
    place = torch.device(device) if device is not None else device_and_dtype(models.text_encoder)[0]
    encoder = models.text_encoder
    # an offloaded encoder would leave while the U-Net draws
    if weight.dtype != torch.float32 or weight.device != place or is_offloaded(encoder):
        encoder = copy.deepcopy(encoder).to(place, torch.float32)
    return replace(models, text_encoder=encoder, unet=_at(models.unet, place), vae=_at(models.vae, place))


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
