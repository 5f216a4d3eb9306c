"""From concepts to their masks: scores ranked, what must stay spared, masks grown and tried."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import and_, sub
from typing import Final

import torch
from torch import Tensor

from surgery.anatomy import weights_of
from surgery.diffusion import Models
from surgery.errors import MethodError
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
from surgery.methods.cad.fit import usual_rows
from surgery.methods.cad.gradients import Grading, add_to
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.ranked import Ranked, rank, ranked_from
from surgery.methods.cad.retained import Retained
from surgery.methods.cad.settings import CadSettings, aimed
from surgery.methods.cad.stored import Shelf
from surgery.methods.cad.trial import Trial
from surgery.record import JSON, Finding
from surgery.store import Store

LISTED: Final = 0.1
"""Masks of up to this ratio come from one list, unless a larger one was asked for; grown ones end here."""
_TINY: Final = 1e-12


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


class Maker:
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
            masks = partial(ranked.mask, rounding=chosen.rounded)
            found = self.trial.grown(group, masks, chosen.strength, chosen.left, ratio)
            ratio, grown = found.ratio, found.left
        mask = ranked.mask(ratio, chosen.rounded, with_scores=chosen.scores)
        wanted = ranked.wanted(ratio, chosen.rounded)
        report, findings = self._tried(group, facts, mask, ratio, wanted)
        names = (concept.name for concept in group)
        return report, [*findings, *grown_findings(dict(zip(names, grown, strict=False)), chosen)]

    def joint(self, concepts: tuple[CadConcept, ...]) -> tuple[MaskReport, list[Finding]]:
        """One mask: what those of several concepts share, or what the first has and the others have not."""
        chosen, ratio = self.settings.selection, self._ratio()
        masks: list[ComponentMask] = []
        facts: list[Facts] = []
        for concept in concepts:
            ranked, own = self._ranked((concept,), ratio)
            masks.append(ranked.mask(ratio, chosen.rounded))
            facts += own
        mask = reduce(and_ if self.settings.combine == "intersection" else sub, masks)
        going = aimed(concepts, self.settings.combine)
        return self._tried(going, tuple(facts[: len(going)]), mask, ratio, None)

    def _tried(
        self,
        group: tuple[CadConcept, ...],
        facts: tuple[Facts, ...],
        mask: ComponentMask,
        ratio: float,
        wanted: int | None,
    ) -> tuple[MaskReport, list[Finding]]:
        """The report of a mask, with what it and random ones do to each concept that it is for."""
        chosen = self.settings.selection
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
        findings += effect_findings(mask, tried, chosen, erases=erases, seeks=wanted is not None)
        report = MaskReport(
            concepts=names,
            mask=mask,
            ratio=ratio,
            wanted=mask.count if wanted is None else wanted,
            facts=facts,
            controls=controls,
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
            del attribution, own  # as large as the weights; the next concept's come
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
