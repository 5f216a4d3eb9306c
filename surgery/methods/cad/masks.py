"""Sets of weights, by tensor and place, and how they combine. Masking a weight twice is masking it once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from surgery.delta import Delta, Places, Rescale
from surgery.errors import MethodError


@dataclass(frozen=True, slots=True, eq=False)
class ComponentMask:
    """Elements of some weights; with ``scores``, how much speaks for each of them, largest 1."""

    places: Mapping[str, Places] = field(default_factory=dict)
    scores: Mapping[str, Tensor] | None = None

    @property
    def count(self) -> int:
        """All of them."""
        return sum(len(_index(places)) for places in self.places.values())

    def counts(self) -> dict[str, int]:
        """How many of each tensor."""
        return {name: len(_index(places)) for name, places in self.places.items()}

    def scored(self, name: str) -> Tensor | None:
        """The scores of one weight's elements."""
        return None if self.scores is None else self.scores[name]

    def __or__(self, other: "ComponentMask") -> "ComponentMask":
        """What is in either."""
        return self._with(other, np.union1d)

    def __and__(self, other: "ComponentMask") -> "ComponentMask":
        """What is in both."""
        return self._with(other, np.intersect1d)

    def __sub__(self, other: "ComponentMask") -> "ComponentMask":
        """What is in this one alone."""
        return self._with(other, np.setdiff1d)

    def _with(self, other: "ComponentMask", combine: Callable[..., np.ndarray]) -> "ComponentMask":
        found = {}
        for name in sorted(self.places.keys() | other.places.keys()):
            mine, theirs = self.places.get(name), other.places.get(name)
            shape = _shape(name, mine, theirs)
            index = combine(_numbers(mine), _numbers(theirs))
            if len(index):
                found[name] = Places("elements", shape, torch.from_numpy(index))
        return ComponentMask(found)

    def overlap(self, other: "ComponentMask") -> float:
        """Jaccard index: the share of what is in either that is in both; 1 for two empty masks."""
        either = (self | other).count
        return (self & other).count / either if either else 1.0


def delta_of(masks: Iterable[tuple[ComponentMask, float]]) -> Delta:
    """The change that takes the share ``strength`` of every masked weight away: W · min(1 - sⱼ).

    Where masks overlap, the strongest counts, as in patches: a mask taken twice is taken once, and two of
    strength 1 leave nothing, and never the opposite of the weight, as the sum of two differences -w would. Of
    scores the larger one stays, where all masks have some.

    Raises:
        MethodError: when a strength is not between 0 and 1.
    """
    factors: dict[str, tuple[Places, Tensor]] = {}
    given = list(masks)
    for mask, strength in given:
        if not 0 <= strength <= 1:
            raise MethodError(f"a mask has the strength {strength}; expected 0 (keep) to 1 (take all).")
        for name, places in mask.places.items():
            held = factors.get(name)
            factors[name] = _joined(held, places, 1 - strength) if held else _alone(places, 1 - strength)
    terms = {}
    for name, (places, values) in sorted(factors.items()):
        alike = len(values) and bool((values == values[0]).all())
        scores = _scores_at(name, places, [mask for mask, _ in given])
        terms[name] = Rescale(places, values[0].clone() if alike else values, scores)
    return Delta(terms)


def _scores_at(name: str, places: Places, masks: Sequence[ComponentMask]) -> Tensor | None:
    """The larger of the masks' scores at each place."""
    if any(mask.scores is None for mask in masks):
        return None
    index, found = _index(places), torch.zeros(len(_index(places)))
    for mask in masks:
        scores = mask.scored(name) if name in mask.places else None
        if scores is not None:
            where = torch.searchsorted(index, _index(mask.places[name]))
            found[where] = torch.maximum(found[where], scores)
    return found


def _alone(places: Places, factor: float) -> tuple[Places, Tensor]:
    return places, torch.full((len(_index(places)),), factor)


def _joined(held: tuple[Places, Tensor], places: Places, factor: float) -> tuple[Places, Tensor]:
    """Both together: the smallest factor where they overlap."""
    joined = torch.cat([_index(held[0]), _index(places)])
    index, where = joined.unique(return_inverse=True)
    values = torch.ones(len(index))
    values[where[: len(held[1])]] = held[1]
    mine = where[len(held[1]) :]  # each place once in a mask
    values[mine] = values[mine].clamp(max=factor)
    return Places("elements", places.shape, index), values


def random_mask(like: ComponentMask, generator: torch.Generator) -> ComponentMask:
    """As many elements of each tensor, drawn evenly: the control of every masking."""
    found = {}
    for name, places in sorted(like.places.items()):
        count, total = len(_index(places)), int(np.prod(places.shape))
        found[name] = Places("elements", places.shape, _draw(total, count, generator))
    return ComponentMask(found)


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different numbers below ``total``, ascending."""
    if count * 4 > total:
        return torch.randperm(total, generator=generator)[:count].sort().values
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < count:
        more = torch.randint(total, (2 * (count - len(found)) + 8,), generator=generator)
        found = torch.cat([found, more]).unique()
    return found[torch.randperm(len(found), generator=generator)[:count]].sort().values


def masked(weight: Tensor, places: Places, strength: float = 1.0) -> Tensor:
    """A copy of a weight with a share of these elements taken away."""
    return places.put(weight, places.take(weight) * (1 - strength))


def _index(places: Places) -> Tensor:
    if places.index is None or places.kind != "elements":
        raise MethodError(f"a mask names single elements; it has {places.kind}.")
    return places.index


def _numbers(places: Places | None) -> np.ndarray:
    return np.zeros(0, np.int64) if places is None else _index(places).numpy()


def _shape(name: str, mine: Places | None, theirs: Places | None) -> tuple[int, ...]:
    shapes = {places.shape for places in (mine, theirs) if places is not None}
    if len(shapes) > 1:
        raise MethodError(
            f"two masks of {name!r} are for shapes {' and '.join(map(str, sorted(shapes)))}; expected one. "
            "Are they of one checkpoint?"
        )
    return shapes.pop()
