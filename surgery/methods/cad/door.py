"""The door of component attribution: concepts and models in, masks and a delta out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from surgery.anatomy import weights_of
from surgery.delta import Delta
from surgery.diffusion import Models
from surgery.errors import MethodError, raise_all
from surgery.methods.cad.attribution import Attribution, Scores
from surgery.methods.cad.checks import (
    Facts,
    attribution_findings,
    effect_findings,
    facts_from,
    facts_of,
    grown_findings,
    refuse_no_gap,
    size_findings,
    unknown_findings,
)
from surgery.methods.cad.control import Control
from surgery.methods.cad.fit import model_findings, refuse_unfit, usual_rows
from surgery.methods.cad.gradients import Grading, add_to
from surgery.methods.cad.masks import ComponentMask, delta_of
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.ranked import Ranked, rank, ranked_from
from surgery.methods.cad.retained import Retained
from surgery.methods.cad.settings import (
    AttributionSettings,
    SelectionSettings,
    check_settings,
)
from surgery.methods.cad.stored import Shelf
from surgery.methods.cad.trial import Trial
from surgery.methods.concepts import repeats
from surgery.record import JSON, Finding
from surgery.store import Store

_log = logging.getLogger(__name__)

Polarity: TypeAlias = Literal["positive", "negative"]
Combine: TypeAlias = Literal["union", "sum", "quota"]

LISTED: Final = 0.1
"""Masks of up to this ratio come from one list, unless a larger one was asked for; grown ones end here."""
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class CadSettings:
    """All knobs of an edit.

    Attributes:
        polarity: ``positive`` takes away what makes a concept, ``negative`` what stands in its way.
        combine: What several concepts share: ``union`` masks the ratio for each, ``sum`` for the sum of their
            scores, each as a share of its concept's measure; ``quota`` an equal part of the ratio for each.
        controls: Whether every mask is tried on pairs with other noise beside random ones.
        micro_batch: Noisy pictures in one pass forward and back; what suits the U-Net's size when left out.
        batch: Paths of the sampler at a time; the same.
        checkpointing: Whether activations are computed again on the way back: slower, with less memory.
    """

    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    polarity: Polarity = "positive"
    combine: Combine = "union"
    controls: bool = True
    micro_batch: int | None = None
    batch: int | None = None
    checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskReport:
    """One mask: whose it is, how large, what its attribution was like, and what it does.

    Attributes:
        ratio: Share of the weights that was asked for, or found; ``wanted`` is how many weights that is.
    """

    concepts: tuple[str, ...]
    mask: ComponentMask
    ratio: float
    wanted: int
    facts: tuple[Facts, ...]
    controls: tuple[Control, ...]

    def lines(self) -> Iterator[str]:
        """For people: what it does to each concept, and what random masks do."""
        for name, one in zip(self.concepts, self.controls, strict=False):
            yield f"{name}: a mask of {self.mask.count:,} weights {one.line()}"

    def as_json(self) -> dict[str, JSON]:
        """As plain data."""
        return {
            "concepts": list(self.concepts),
            "weights": self.mask.count,
            "ratio": self.ratio,
            "wanted": self.wanted,
            "tensors": len(self.mask.places),
            "attribution": [
                {
                    "measure": one.measure,
                    "deviation": one.deviation,
                    "pairs": one.pairs,
                    "positive": one.positive,
                }
                for one in self.facts
            ],
            "controls": [one.as_json() for one in self.controls],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CadResult:
    """Masks and the change that they make."""

    delta: Delta
    masks: tuple[MaskReport, ...]
    findings: tuple[Finding, ...]


def edit(
    models: Models,
    concepts: Sequence[CadConcept],
    names: tuple[str, ...],
    settings: CadSettings,
    *,
    retain: Sequence[CadConcept] = (),
    store: Store | None = None,
) -> CadResult:
    """The change that takes the weights of some concepts away. The models are read and never changed.

    Args:
        models: The unedited checkpoint.
        concepts: Whose weights.
        names: Canonical names of the tensors looked at (``components_of``).
        settings: How weights are scored and chosen.
        retain: Concepts that must stay, for the rankings ``retain`` and ``damage`` and for ``protect``.
        store: Where lists and half-done attributions are kept, so that a killed run goes on where it was.

    Raises:
        MethodError: when settings, names or models do not fit, or scores are not finite.

    Source: arXiv 2412.02542.
    """
    check_edit(concepts, settings, retain)
    refuse_unfit(models, names, settings.attribution)
    maker = _Maker(models, names, settings, tuple(retain), store)
    maker.shelf.share_batches(concepts, settings.attribution)
    reports, findings = [], list(model_findings(models, concepts))
    for group in [tuple(concepts)] if settings.combine == "sum" else [(concept,) for concept in concepts]:
        report, found = maker.report(group, len(concepts))
        reports.append(report)
        findings += found
    for finding in findings:
        if finding.severity == "warning":
            _log.warning("%s: %s", finding.subject, finding.message)
    strength = settings.selection.strength
    return CadResult(
        delta=delta_of([(report.mask, strength) for report in reports]),
        masks=tuple(reports),
        findings=tuple(findings),
    )


def check_edit(
    concepts: Sequence[CadConcept], settings: CadSettings, retain: Sequence[CadConcept] = ()
) -> None:
    """Refuse what ``edit`` would refuse before anything is computed.

    Raises:
        MethodError: all faults at once.
    """
    check_settings(settings.attribution, settings.selection)
    chosen = settings.selection
    faults = []
    if not concepts:
        faults.append("no concept is named; expected at least one.")
    if not retain and (chosen.ranking in ("retain", "damage") or chosen.protect > 0):
        faults.append(
            f"ranking {chosen.ranking!r} with protect {chosen.protect:g} looks at concepts to retain; "
            "expected some. Name them under retain."
        )
    faults += [
        f"{name} is {rows}; expected 1 or more. Leave it out for the default."
        for name, rows in (("batch", settings.batch), ("micro_batch", settings.micro_batch))
        if rows is not None and rows < 1
    ]
    if not 0 <= chosen.strength <= 1:
        faults.append(f"strength is {chosen.strength:g}; expected 0 (keep) to 1 (take all).")
    if chosen.ratio == 0 and chosen.left is None:
        faults.append("ratio is 0: nothing would be masked; expected a share above 0.")
    if chosen.left is not None and settings.polarity == "negative":
        faults.append("left is how far a concept is erased; the other polarity needs a ratio or a count.")
    if chosen.left is not None and settings.combine == "quota":
        faults.append("combine 'quota' parts a ratio, and left looks for one; use union or sum.")
    faults += repeats([concept.name for concept in retain])
    both = {concept.name.casefold() for concept in concepts} & {one.name.casefold() for one in retain}
    if both:
        faults.append(f"{', '.join(sorted(both))} is to go and to be retained; expected one of the two.")
    raise_all(MethodError, faults)


class _Maker:
    """Lists and masks of one call."""

    def __init__(
        self,
        models: Models,
        names: tuple[str, ...],
        settings: CadSettings,
        retain: tuple[CadConcept, ...],
        store: Store | None,
    ) -> None:
        self.models, self.names, self.settings = models, names, settings
        self.retain, self.store = retain, store
        rows, paths = usual_rows(models)
        micro_batch = rows if settings.micro_batch is None else settings.micro_batch
        batch = paths if settings.batch is None else settings.batch
        self.grading = Grading(
            names=names,
            micro_batch=micro_batch,
            checkpointing=settings.checkpointing,
            even=settings.attribution.weighting == "even",
        )
        self.shelf = Shelf(store, models, self.grading, batch)
        self.trial = Trial(models, settings.attribution, micro_batch, self.shelf)
        self._needed: dict[str, Tensor] | None = None

    def report(self, group: tuple[CadConcept, ...], among: int) -> tuple[MaskReport, list[Finding]]:
        """The mask of one concept, or of the sum of several, with what was noticed."""
        chosen = self.settings.selection
        ratio = self._ratio()
        ratio = ratio / among if self.settings.combine == "quota" else ratio
        ranked, facts = self._ranked(group, ratio)
        grown: tuple[float, ...] = ()
        if chosen.left is not None:
            masks = partial(ranked.mask, rounding=chosen.rounding)
            found = self.trial.grown(group, masks, chosen.strength, chosen.left, ratio)
            ratio, grown = found.ratio, found.left
        mask = ranked.mask(ratio, chosen.rounding)
        wanted = ranked.wanted(ratio, chosen.rounding)
        tries = partial(self.trial.control, mask=mask, strength=chosen.strength)
        controls = tuple(tries(concept) for concept in group) if self.settings.controls else ()
        names = tuple(concept.name for concept in group)
        tried = dict(zip(names, controls, strict=False))
        findings = [
            finding
            for concept, own in zip(group, facts, strict=True)
            for finding in attribution_findings(concept.name, own)
        ]
        for concept in group if controls else ():
            findings += unknown_findings(
                concept.name, tried[concept.name].before.mean, self.trial.made_up(concept)
            )
        erases = self.settings.polarity == "positive"
        findings += size_findings(" + ".join(names), mask, wanted, self.names)
        findings += grown_findings(dict(zip(names, grown, strict=False)), chosen)
        findings += effect_findings(mask, tried, chosen, erases=erases)
        report = MaskReport(
            concepts=names, mask=mask, ratio=ratio, wanted=wanted, facts=facts, controls=controls
        )
        return report, findings

    def _ratio(self) -> float:
        """The share that is asked for, or that a count is, or up to which one is looked for."""
        chosen = self.settings.selection
        if chosen.left is not None:
            return LISTED
        if chosen.count is None:
            return chosen.ratio
        total = sum(weight.numel() for weight in weights_of(self.models, self.names).values())
        if chosen.count > total:
            raise MethodError(f"count is {chosen.count}; the weights looked at are {total}. Ask for fewer.")
        return chosen.count / total

    def _ranked(self, group: tuple[CadConcept, ...], ratio: float) -> tuple[Ranked, tuple[Facts, ...]]:
        most = max(LISTED, ratio)
        meaning = self._meaning(group, most)
        key = None if self.store is None else self.store.key(meaning)
        if self.store is not None and key is not None:
            held = self.store.get(key)
            if held is not None:
                self._clear(group)
                facts = tuple(facts_from(one) for one in held.data["facts"])
                return ranked_from(held.tensors(), held.data["ranked"]), facts
        ranked, facts = self._rank(group, most)
        if self.store is not None and key is not None:
            told: Mapping[str, JSON] = {
                "ranked": ranked.as_data(),
                "facts": [one.as_data() for one in facts],
            }
            self.store.put(key, ranked.as_tensors(), told)
            self._clear(group)
        return ranked, facts

    def _clear(self, concepts: Sequence[CadConcept]) -> None:
        """Sums are as large as the weights, and of no use once what was made of them is stored."""
        for concept in concepts:
            self.shelf.clear(concept, self.settings.attribution)

    def _rank(self, group: tuple[CadConcept, ...], most: float) -> tuple[Ranked, tuple[Facts, ...]]:
        chosen = self.settings.selection
        total: dict[str, Tensor] = {}
        facts = []
        for concept in group:
            attribution = self._attribution(concept)
            facts.append(facts_of(attribution))
            own = partial(self._shares, attribution, facts[-1].measure)
            if len(group) == 1:
                scores = partial(self._spared, own)
                return rank(scores, chosen.rule, most, zeros=chosen.zeros), tuple(facts)
            for name, score in own():
                add_to(total, name, score)
        summed = partial(self._spared, lambda: sorted(total.items()))
        return rank(summed, chosen.rule, most, zeros=chosen.zeros), tuple(facts)

    def _attribution(self, concept: CadConcept) -> Attribution:
        found = self.shelf.attribution(concept, self.settings.attribution)
        refuse_no_gap(concept.name, found.measured)
        return found

    def _shares(self, attribution: Attribution, measure: float) -> Iterator[tuple[str, Tensor]]:
        """Scores as shares of the concept's measure, or over their errors; above 0 what is to be masked."""
        sign = 1.0 if self.settings.polarity == "positive" else -1.0
        if self.settings.selection.ranking == "t":
            for name, score in attribution.t_statistics():
                yield name, sign * score
            return
        for name, score in attribution.scores():
            yield name, sign / max(abs(measure), _TINY) * score

    def _spared(self, scores: Scores) -> Iterator[tuple[str, Tensor]]:
        """The same, what the concepts to retain need held against it; what is protected is never masked."""
        needed, chosen = self._needed_by_others(), self.settings.selection
        for name, score in scores():
            if name not in needed:
                yield name, score
                continue
            need = chosen.retain_weight * needed[name]
            spared = score / (1 + need) if chosen.ranking == "damage" else score - need
            yield name, torch.where(needed[name].isinf(), -1.0, spared)

    def _needed_by_others(self) -> dict[str, Tensor]:
        """What each weight means to the concepts to retain, infinite where it is protected; made once."""
        if self._needed is None:
            self._needed = self._retained() if self.retain else {}
        return self._needed

    def _retained(self) -> dict[str, Tensor]:
        chosen = self.settings.selection
        retained = Retained(
            models=self.models,
            concepts=self.retain,
            attribution=self.settings.attribution,
            grading=self.grading,
            shelf=self.shelf,
            store=self.store,
        )
        needed: dict[str, Tensor] = {}
        if chosen.ranking == "damage":
            needed = retained.mean("damage")
            usual = sum(float(one.sum()) for one in needed.values()) / sum(
                one.numel() for one in needed.values()
            )
            needed = {name: one / max(usual, _TINY) for name, one in needed.items()}
        elif chosen.ranking == "retain":
            needed = retained.mean("scores")
        if chosen.protect > 0:
            scores = needed if chosen.ranking == "retain" else retained.mean("scores")
            needed = {name: needed.get(name, torch.zeros_like(one)).clone() for name, one in scores.items()}
            for name, one in scores.items():
                count = int(chosen.protect * one.numel())
                largest = one.flatten().sort(descending=True, stable=True).indices[:count]
                needed[name].view(-1)[largest] = torch.inf
        return needed

    def _meaning(self, group: tuple[CadConcept, ...], most: float) -> dict[str, JSON]:
        chosen = self.settings.selection
        meaning: dict[str, JSON] = {
            "what": "cad ranked",
            "concepts": [self.shelf.keys.concept(one, self.settings.attribution) for one in group],
            "rule": chosen.rule,
            "ranking": chosen.ranking,
            "most": most,
            "zeros": chosen.zeros,
            "polarity": self.settings.polarity,
        }
        if chosen.ranking in ("retain", "damage") or chosen.protect > 0:
            meaning["retain"] = [
                self.shelf.keys.concept(one, self.settings.attribution) for one in self.retain
            ]
            meaning["retain_weight"], meaning["protect"] = chosen.retain_weight, chosen.protect
            meaning["needs"] = 2  # goes up when they are weighed otherwise
        return meaning
