"""What each weight means to concepts that must stay; a killed run loses one concept's part of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from surgery import progress
from surgery.diffusion import Models, derived_seed
from surgery.methods.cad.checks import refuse_no_gap
from surgery.methods.cad.gradients import Grading, add_to, measure
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.predict import curvature
from surgery.methods.cad.settings import AttributionSettings
from surgery.methods.cad.stored import Shelf
from surgery.record import JSON
from surgery.store import Store

Kind: TypeAlias = Literal["scores", "damage"]

PROBES: Final = 4
"""Rounds of random signs for each concept; the mean over concepts needs few."""
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """The concepts that must stay, and how they are looked at."""

    models: Models
    concepts: Sequence[CadConcept]
    attribution: AttributionSettings
    grading: Grading
    shelf: Shelf
    store: Store | None

    def mean(self, kind: Kind) -> dict[str, Tensor]:
        """The mean over the concepts, each as a share of its own measure.

        ``scores`` are the sizes of a concept's scores, ``damage`` the curvature of its predictions: what a
        weight's loss costs, to the second order (section 9 of the study).
        """
        total, done = self._newest(kind)
        rest = list(self.concepts[done:])
        for concept in progress.track(rest, "concepts to retain", unit="concept"):
            for name, one in self._of(kind, concept):
                add_to(total, name, one)
            done += 1
            if self.store is not None:
                self.store.put(self._key(self.store, kind, done), total, {})
                self.store.drop(self._key(self.store, kind, done - 1))
                self.shelf.clear(concept, self.attribution)
        return {name: one / len(self.concepts) for name, one in total.items()}

    def _of(self, kind: Kind, concept: CadConcept) -> Iterator[tuple[str, Tensor]]:
        if kind == "scores":
            found = self.shelf.attribution(concept, self.attribution)
            refuse_no_gap(concept.name, found.measured)
            whole = max(abs(found.measured.mean), _TINY)
            yield from ((name, score.abs() / whole) for name, score in found.scores())
            return
        pairs = self.shelf.pairs(concept, self.attribution)
        generator = torch.Generator().manual_seed(derived_seed(concept.seed, "signs"))
        seen = measure(self.models, pairs, {}, 2 * self.grading.micro_batch)
        refuse_no_gap(concept.name, seen)
        heights = curvature(self.models, pairs, self.grading, PROBES, generator)
        yield from ((name, height / max(abs(seen.mean), _TINY)) for name, height in heights.items())

    def _newest(self, kind: Kind) -> tuple[dict[str, Tensor], int]:
        """The sum over the first concepts that an earlier run left, and how many they are."""
        if self.store is not None:
            for count in range(len(self.concepts), 0, -1):
                held = self.store.get(self._key(self.store, kind, count))
                if held is not None:
                    return held.tensors(), count
        return {}, 0

    def _key(self, store: Store, kind: Kind, count: int) -> str:
        told: list[JSON] = [
            dict(self.shelf.keys.concept(one, self.attribution)) for one in self.concepts[:count]
        ]
        return store.key({"what": "cad retained", "kind": kind, "concepts": told})
