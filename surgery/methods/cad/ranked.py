"""The best candidates for a mask with their scores, found once: every smaller mask is a part of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.delta import Places
from surgery.errors import MethodError
from surgery.methods.cad.attribution import Scores
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.settings import Rounding, Rule
from surgery.numerics.ranking import largest_of_all, largest_of_rows, quotas

_SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Flat places of one tensor, ascending, and their scores."""

    places: Int64[Tensor, " places"]
    scores: Float[Tensor, " places"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Candidates by tensor for masks of any ratio up to ``ratio`` under one rule.

    Attributes:
        shapes: Of the weights, also of those without a candidate.
        zeros: Whether scores of nothing are among them.
    """

    rule: Rule
    ratio: float
    zeros: bool
    shapes: Mapping[str, tuple[int, ...]]
    candidates: Mapping[str, Candidates]

    def mask(self, ratio: float, rounding: Rounding = "carry", *, with_scores: bool = False) -> ComponentMask:
        """The mask of a ratio: of each row, tensor or all together the candidates with the largest scores.

        Quotas that are carried on come to the whole number nearest to the ratio of all weights.

        Raises:
            MethodError: when the ratio is larger than what was ranked.
        """
        if not 0 <= ratio <= self.ratio + _SLACK:
            raise MethodError(
                f"the ratio is {ratio:g}; the list holds the largest {self.ratio:g}. Rank more, or ask for "
                "less."
            )
        if self.rule == "global":
            chosen = self._of_all(ratio, rounding)
        else:
            parts = self._parts(ratio, rounding)
            pick = self._of_rows if self.rule == "row" else self._of_tensor
            chosen = {name: pick(name, parts[name]) for name in self.candidates}
        places = {
            name: Places("elements", self.shapes[name], index) for name, index in chosen.items() if len(index)
        }
        return ComponentMask(places, self._scores(places) if with_scores else None)

    def _scores(self, places: Mapping[str, Places]) -> dict[str, Tensor]:
        """Of the chosen candidates, as shares of the largest."""
        found = {}
        for name, chosen in places.items():
            mine, index = self.candidates[name], chosen.index
            assert index is not None
            found[name] = mine.scores[torch.searchsorted(mine.places, index)].float()
        largest = max((float(one.max()) for one in found.values()), default=0.0)
        return {name: one / largest if largest > 0 else one for name, one in found.items()}

    def wanted(self, ratio: float, rounding: Rounding) -> int:
        """How many weights a ratio asks for; a mask has fewer where scores speak against the concept."""
        if self.rule == "global":
            return int(quotas(1, _total(self.shapes), ratio, rounding))
        return sum(int(part.sum()) for part in self._parts(ratio, rounding).values())

    def _parts(self, ratio: float, rounding: Rounding) -> dict[str, Tensor]:
        """The quota of each row of each tensor, or of the tensor; one carries on where the last one ends."""
        parts, before = {}, 0.0
        for name, shape in sorted(self.shapes.items()):
            rows = shape[0] if self.rule == "row" else 1
            parts[name] = quotas(rows, prod(shape) // rows, ratio, rounding, before)
            before += ratio * prod(shape)
        return parts

    def _of_rows(self, name: str, wanted: Tensor) -> Tensor:
        mine, shape = self.candidates[name], self.shapes[name]
        width = prod(shape[1:])
        order = mine.scores.sort(descending=True, stable=True).indices
        rows = mine.places[order] // width
        by_row = rows.sort(stable=True)
        counts = torch.bincount(by_row.values, minlength=shape[0])
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(rows)) - first[by_row.values]
        kept = order[by_row.indices[rank < wanted[by_row.values]]]
        return mine.places[kept].sort().values

    def _of_tensor(self, name: str, wanted: Tensor) -> Tensor:
        mine = self.candidates[name]
        best = mine.scores.sort(descending=True, stable=True).indices[: int(wanted)]
        return mine.places[best].sort().values

    def _of_all(self, ratio: float, rounding: Rounding) -> dict[str, Tensor]:
        names = sorted(self.candidates)
        wanted = int(quotas(1, _total(self.shapes), ratio, rounding))
        scores = torch.cat([self.candidates[name].scores for name in names])
        best = torch.zeros(len(scores), dtype=torch.bool)
        best[scores.sort(descending=True, stable=True).indices[:wanted]] = True
        parts = best.split([len(self.candidates[name].scores) for name in names])
        return {name: self.candidates[name].places[part] for name, part in zip(names, parts, strict=True)}

    def as_tensors(self) -> dict[str, Tensor]:
        """All of it for a file."""
        found = {}
        for name, mine in self.candidates.items():
            found[f"{name}::places"] = mine.places
            found[f"{name}::scores"] = mine.scores
        return found

    def as_data(self) -> dict[str, Any]:
        """What the tensors do not say, as plain data."""
        return {
            "rule": self.rule,
            "ratio": self.ratio,
            "zeros": self.zeros,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }


def ranked_from(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Ranked:
    """What ``as_tensors`` and ``as_data`` were made of."""
    return Ranked(
        rule=data["rule"],
        ratio=float(data["ratio"]),
        zeros=bool(data["zeros"]),
        shapes={name: tuple(shape) for name, shape in data["shapes"].items()},
        candidates={
            name: Candidates(places=tensors[f"{name}::places"], scores=tensors[f"{name}::scores"])
            for name in data["shapes"]
        },
    )


def rank(scores: Scores, rule: Rule, ratio: float, *, zeros: bool = False) -> Ranked:
    """The candidates for masks of up to a ratio; scores below zero are never among them.

    Args:
        scores: Gives the scores tensor by tensor; asked twice for the rule ``global``.
        rule: What has a quota.
        ratio: The largest that masks will be asked of.
        zeros: Whether scores of nothing are taken where there are no others.
    """
    if rule == "global":
        return _rank_all(scores, ratio, zeros)
    shapes, candidates = {}, {}
    for name, one in scores():
        shapes[name] = tuple(one.shape)
        matrix = one.reshape(one.shape[0], -1) if rule == "row" else one.reshape(1, -1)
        counts = quotas(matrix.shape[0], matrix.shape[1], ratio, "ceil")
        places = largest_of_rows(matrix, counts, zeros=zeros)
        candidates[name] = Candidates(places=places, scores=one.flatten()[places])
    return Ranked(rule=rule, ratio=ratio, zeros=zeros, shapes=shapes, candidates=candidates)


def _rank_all(scores: Scores, ratio: float, zeros: bool) -> Ranked:
    shapes: dict[str, tuple[int, ...]] = {}

    def passing() -> Iterator[tuple[str, Tensor]]:
        for name, one in scores():
            shapes[name] = tuple(one.shape)
            yield name, one

    best = largest_of_all(passing, lambda total: int(quotas(1, total, ratio, "ceil")), zeros=zeros)
    candidates = {name: Candidates(places=places, scores=values) for name, (places, values) in best.items()}
    return Ranked(rule="global", ratio=ratio, zeros=zeros, shapes=shapes, candidates=candidates)


def _total(shapes: Mapping[str, Iterable[int]]) -> int:
    return sum(prod(shape) for shape in shapes.values())
