"""Rules that say which weights make a concept, and in which order: those of CAD, of ours, and baselines.

Each gives, for one concept, the mask of any ratio. What rules share (pairs, gradients, the scores of other
concepts) is made once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from surgery.anatomy import reading_inputs, standing_in, weights_digest, weights_of
from surgery.checkpoint.atomic import atomic_file
from surgery.diffusion import derived_seed, predict_noise, read_prompts
from surgery.methods.cad import AttributionSettings, CadConcept
from surgery.methods.cad.attribution import Attribution, attribute
from surgery.methods.cad.control import HeldOut
from surgery.methods.cad.gradients import Grading, add_to
from surgery.methods.cad.masks import ComponentMask, masked
from surgery.methods.cad.nouns import PUBLISHED_TEMPLATES, Pairs, concepts_named
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.predict import curvature
from surgery.methods.cad.ranked import rank
from surgery.methods.cad.settings import PUBLISHED_ERASE, QUICK, Rounding, Rule, as_json
from surgery.methods.cad.trial import trial_scheme
from surgery.progress import track
from surgery.record import JSON, json_digest

Scored = dict[str, Tensor]
Mask = Callable[[float], ComponentMask]

SCHEME: Final = AttributionSettings(trajectories=24, sampling_steps=8, graded_steps=2, antithetic=False)
"""Of every cell; the default's paths start two by two from one noise, and are steadier."""
MOST: Final = 0.5
"""The largest share of the weights that a mask is looked for in."""
ROUNDS: Final = tuple(MOST / 4**step for step in range(8, -1, -1))
"""Ratios at which refined rules look anew."""
_PROBES: Final = 4
_TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Others:
    """Means over the reference concepts, each as a share of its own measure: of |score|, and of curvature."""

    absolute: Scored
    damage: Scored


def shares_of(found: Attribution) -> Scored:
    """Scores as shares of the concept's measure."""
    return {name: score / found.measured.mean for name, score in found.scores()}


@dataclass(kw_only=True)
class Bank:
    """What rules read; the last concept's attribution is kept, and all of the reference concepts' moments."""

    models: Any
    names: tuple[str, ...]
    references: Sequence[CadConcept]
    work: Path
    micro_batch: int = 25
    scheme: AttributionSettings = SCHEME
    _last: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def grading(self) -> Grading:
        return Grading(names=self.names, micro_batch=self.micro_batch)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        return {name: one.detach().clone() for name, one in weights_of(self.models, self.names).items()}

    def pairs(self, concept: CadConcept) -> Pairs:
        found: Pairs = self._kept(
            concept, "pairs", lambda: pairs_of(self.models, [concept], self.scheme, batch=16)[0]
        )
        return found

    def held_out(self, concept: CadConcept) -> HeldOut:
        """Other pairs of the concept, which tell what is left of its direction with a mask."""

        def made() -> HeldOut:
            scheme = trial_scheme(self.scheme)
            (pairs,) = pairs_of(self.models, [concept], scheme, purpose="control", batch=16)
            return HeldOut(self.models, pairs, self.micro_batch)

        found: HeldOut = self._kept(concept, "held out", made)
        return found

    def attribution(self, concept: CadConcept, *, even: bool = False, errors: bool = False) -> Attribution:
        grading = replace(self.grading, even=even)
        found: Attribution = self._kept(
            concept,
            f"own {even} {errors}",
            lambda: attribute(self.models, self.pairs(concept), grading, standard_errors=errors),
        )
        return found

    def published(self, concept: CadConcept) -> Attribution:
        """By the published scheme, of the bare name."""
        (bare,) = concepts_named([concept.name], PUBLISHED_TEMPLATES)
        bare = replace(bare, seed=derived_seed(concept.seed, "published"))
        return self._by("published", concept, bare, PUBLISHED_ERASE[0])

    def quick(self, concept: CadConcept) -> Attribution:
        """By fewer and shorter paths."""
        return self._by("quick", concept, concept, QUICK[0])

    def _by(
        self, name: str, concept: CadConcept, asked: CadConcept, scheme: AttributionSettings
    ) -> Attribution:
        """By another scheme, whose prompts may be others, too."""

        def made() -> Attribution:
            (pairs,) = pairs_of(self.models, [asked], scheme, batch=16)
            return attribute(self.models, pairs, self.grading)

        found: Attribution = self._kept(concept, name, made)
        return found

    def shares(self, concept: CadConcept, *, even: bool = False) -> Scored:
        """The concept's scores as shares of its measure."""
        return shares_of(self.attribution(concept, even=even))

    @cached_property
    def others(self) -> Others:
        """Computed once, and kept in a file of the work folder: it takes minutes."""
        told: JSON = [
            [weights_digest(self.models.unet), weights_digest(self.models.text_encoder)],
            [[one.name, one.seed, *one.prompts] for one in self.references],
            as_json(self.scheme),
            [list(self.names), _PROBES],
        ]
        place = self.work / f"others-{json_digest(told)[:12]}.safetensors"
        kinds = [one.name for one in fields(Others)]
        if not place.is_file():
            found = self._moments()
            tensors = {
                f"{kind}:{name}": one.contiguous()
                for kind in kinds
                for name, one in getattr(found, kind).items()
            }
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(place, overwrite=True) as temporary:
                save_file(tensors, temporary)
        parts: dict[str, Scored] = {kind: {} for kind in kinds}
        for key, one in load_file(place).items():
            kind, _, name = key.partition(":")
            if kind in parts:
                parts[kind][name] = one
        return Others(**parts)

    def _moments(self) -> Others:
        absolute: Scored = {}
        damage: Scored = {}
        count = len(self.references)
        for concept in track(self.references, "reference concepts", unit="concept"):
            (pairs,) = pairs_of(self.models, [concept], self.scheme, batch=16)
            found = attribute(self.models, pairs, self.grading)
            for name, score in found.scores():
                add_to(absolute, name, (score / (found.measured.mean * count)).abs())
            generator = torch.Generator().manual_seed(derived_seed(concept.seed, "signs"))
            heights = curvature(self.models, pairs, self.grading, _PROBES, generator)
            for name, height in heights.items():
                add_to(damage, name, height / (found.measured.mean * count))
        return Others(absolute=absolute, damage=damage)

    def _kept(self, concept: CadConcept, what: str, make: Callable[[], Any]) -> Any:
        if (concept.name, what) not in self._last:
            self._last = {key: one for key, one in self._last.items() if key[0] == concept.name}
            self._last[concept.name, what] = make()
        return self._last[concept.name, what]


Scores = Callable[[Bank, CadConcept, Scored], Scored]
"""Ranks weights of a concept, given its own scores as shares of its measure."""


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """How one rule ranks weights, and what it takes away of them.

    Attributes:
        says: For the table.
        scores: Of every weight; above nothing what may be masked.
        quota: What has a quota of its own.
        refined: Whether scores are made anew each time a mask has grown to four times its size.
        baseline: Whether it is there to be compared with.
        reads: Whether the concept's own scores are looked at.
        even: Whether every pair says as much in them.
    """

    says: str
    scores: Scores
    quota: Rule = "global"
    rounding: Rounding = "carry"
    zeros: bool = False
    strength: float = 1.0
    refined: bool = False
    baseline: bool = False
    reads: bool = True
    even: bool = False

    def masks(self, bank: Bank, concept: CadConcept) -> Mask:
        """The mask of any ratio."""
        if self.refined:
            return self._refined(bank, concept)
        scored = self.scores(bank, concept, bank.shares(concept, even=self.even) if self.reads else {})
        ranked = rank(lambda: sorted(scored.items()), self.quota, MOST, zeros=self.zeros)
        return lambda ratio: ranked.mask(ratio, self.rounding)

    def _refined(self, bank: Bank, concept: CadConcept) -> Mask:
        """Masks that grow: what joins each is chosen where all the smaller ones are gone."""
        pairs, grading = bank.pairs(concept), replace(bank.grading, even=self.even)
        mask, lists = ComponentMask(), []
        for most in ROUNDS:
            gone = {name: masked(bank.weights[name], places) for name, places in mask.places.items()}
            with standing_in(bank.models, gone):
                shares = shares_of(attribute(bank.models, pairs, grading))
            scored = self.scores(bank, concept, shares)
            for name, places in mask.places.items():
                scored[name] = places.put(scored[name], torch.full(places.values_shape, torch.inf))
            lists.append(rank(partial(sorted, scored.items()), self.quota, most))
            mask = lists[-1].mask(most, self.rounding)

        def of(ratio: float) -> ComponentMask:
            return lists[bisect_left(ROUNDS, ratio)].mask(ratio, self.rounding)

        return of


# rankings


def own(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    return shares


def published(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    return dict(bank.published(concept).scores())


def by_quick_paths(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    return dict(bank.quick(concept).scores())


def t_statistic(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    return dict(bank.attribution(concept, errors=True).t_statistics())


def less_usual(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    """The concept's score less what its weight usually says of the reference concepts."""
    usual = bank.others.absolute
    return {name: score - usual[name] for name, score in shares.items()}


def by_damage(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    """Score for each unit of damage to the reference concepts' predictions."""
    damage = bank.others.damage
    floor = torch.cat([one.flatten() for one in damage.values()]).mean()
    return {name: score / (damage[name] + floor) for name, score in shares.items()}


def drawn(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    generator = torch.Generator().manual_seed(derived_seed(concept.seed, "random rule"))
    return {name: torch.rand(one.shape, generator=generator) for name, one in sorted(bank.weights.items())}


def magnitude(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    return {name: one.abs() for name, one in bank.weights.items()}


def unsigned(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    return {name: score.abs() for name, score in shares.items()}


def activations(bank: Bank, concept: CadConcept, shares: Scored) -> Scored:
    """|W| times the size of what comes in, where that is larger for the concept than for the empty prompt.

    Source: Wanda (2306.11695) as ConceptPrune (2405.19237) turns it round; here for both matrices.
    """
    pairs = bank.pairs(concept)
    target, base = (_came_in(bank, pairs, prompts) for prompts in (pairs.prompts, ("",)))
    found = {}
    for name, weight in bank.weights.items():
        wanted, usual = weight.abs() * target[name], weight.abs() * base[name]
        found[name] = torch.where(wanted > usual, wanted, -1.0)
    return found


@torch.no_grad()
def _came_in(bank: Bank, pairs: Pairs, prompts: Sequence[str]) -> dict[str, Tensor]:
    """By weight, the norm of each input over all tokens, each token's made one long first."""
    sums: dict[str, Tensor] = {}

    unet = bank.models.unet
    modules = {
        name: unet.get_submodule(name.removeprefix("unet/").removesuffix(".weight")) for name in bank.names
    }
    reading = read_prompts(bank.models, prompts)
    with reading_inputs(modules) as seen:
        for start in range(0, len(pairs), bank.micro_batch):
            part = pairs.select(slice(start, start + bank.micro_batch))
            which = part.prompt if len(prompts) > 1 else torch.zeros_like(part.prompt)
            predict_noise(unet, part.noisy, part.timesteps, reading.select(which).features)
            for name, given in seen.items():
                tokens = normalize(given.flatten(0, -2).float(), dim=-1)
                add_to(sums, name, tokens.square().sum(0))
    return {name: one.sqrt() for name, one in sums.items()}


RULES: Final[Mapping[str, MaskRule]] = {
    "row": MaskRule(says="CAD, a quota for each row", scores=own, quota="row"),
    "tensor": MaskRule(says="a quota for each tensor", scores=own, quota="tensor"),
    "global": MaskRule(says="one quota", scores=own),
    "even": MaskRule(says="every pair says as much", scores=own, even=True),
    "global-t": MaskRule(says="score over its standard error", scores=t_statistic),
    "retain": MaskRule(says="less the others' mean |score|", scores=less_usual),
    "row-retain": MaskRule(says="the same, rows", scores=less_usual, quota="row"),
    "by-damage": MaskRule(says="score for each unit of the others' curvature", scores=by_damage),
    "refined": MaskRule(says="one quota, scored anew as the mask grows", scores=own, refined=True),
    "refined-by-damage": MaskRule(
        says="score for each unit of the others' curvature, scored anew", scores=by_damage, refined=True
    ),
    "half": MaskRule(says="one quota, half of each weight", scores=own, strength=0.5),
    "published": MaskRule(
        says="CAD as published",
        scores=published,
        quota="row",
        rounding="floor",
        zeros=True,
        baseline=True,
        reads=False,
    ),
    "quick": MaskRule(
        says="preset quick, rows", scores=by_quick_paths, quota="row", baseline=True, reads=False
    ),
    "random": MaskRule(says="drawn evenly", scores=drawn, quota="row", baseline=True, reads=False),
    "magnitude": MaskRule(says="|w|", scores=magnitude, quota="row", baseline=True, reads=False),
    "unsigned": MaskRule(says="|w · gradient|", scores=unsigned, quota="row", baseline=True),
    "activations": MaskRule(
        says="|w| · size of its input (as ConceptPrune)",
        scores=activations,
        quota="row",
        baseline=True,
        reads=False,
    ),
}
"""All rules by name."""
