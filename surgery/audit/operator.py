"""Whether one small map G explains the changes of many weights that read the same input: ΔW = W G."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.audit.sides import Sides, matrix_shape
from surgery.errors import NumericsError
from surgery.numerics import Factor, factorise
from surgery.report.audit_record import TensorRow

KEYS, VALUES = "cross_key", "cross_value"
_HYPOTHESES: Final = ((KEYS,), (VALUES,), (KEYS, VALUES))  # both last: theirs is made in the sums of the keys
# Fewer rows than this many times the inputs leave G open in some direction, and fitting proves nothing.
_ROWS_PER_INPUT: Final = 1.5
# So many rows for each input, of so many sites of a role, settle it; more would only cost.
_ROWS_WANTED: Final = 3
_SITES_WANTED: Final = 4
_RIDGE: Final = 1e-9  # of the mean eigenvalue; only against singular systems
# Random directions in which changes are compared with what G says of them.
_PROBES: Final = 64
_CACHED: Final = 1 << 17  # elements read at a time: their copies in double precision stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFit:
    """How well one G, solved from every other site, predicts the sites between.

    Attributes:
        roles: Whose changes it explains.
        explained: Share of the squared change of the held-out sites; negative where G makes it worse.
        fitted: Sites that G was solved from.
        held_out: Sites that it was tried on.
        effective_rank: (Σσ²)² / Σσ⁴ of G, as random directions show it.
    """

    roles: tuple[str, ...]
    explained: float
    fitted: int
    held_out: int
    effective_rank: float


def fit_operator(sides: Sides, rows: Sequence[TensorRow]) -> OperatorFit | None:
    """The best of three guesses: one G for keys and values, one for the keys, one for the values.

    Normal equations of a few sites of each role, solved for G in random directions, serve all three; sums of
    squares in such directions are, on average, those of the whole.

    None where there is nothing to tell: no base, too few changed sites, or weights that do not determine G.
    """
    try:
        return _fitted(sides, rows)
    except NumericsError:  # weights of zeros, or next to it
        return None


def _fitted(sides: Sides, rows: Sequence[TensorRow]) -> OperatorFit | None:
    sites = [
        row
        for row in rows
        if row.role in (KEYS, VALUES) and row.state == "changed" and not any(row.nonfinite)
    ]
    if not sides.has_base or len({site.columns[1] for site in sites}) != 1:
        return None
    inputs = sites[0].columns[1]
    chosen = {role: _chosen([site for site in sites if site.role == role], inputs) for role in (KEYS, VALUES)}
    probes = torch.randn(
        inputs, min(_PROBES, inputs), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    fitted = {role: split.fitted for role, split in chosen.items() if split.fitted}
    sums = {role: _sums(sides, some, probes) for role, some in fitted.items()}
    guesses = [_Guess(roles, [chosen[role] for role in roles]) for roles in _HYPOTHESES]
    for guess in (guesses := [guess for guess in guesses if guess.can_be_told(inputs)]):
        (gram, products), *others = (sums[role] for role in guess.roles)
        for other_gram, other_products in others:
            gram += other_gram
            products += other_products
        guess.shared = _factor(gram).solve(products)
    sums.clear()
    for role, split in chosen.items():
        for site in split.held_out:
            _try_on(sides, site.name, [guess for guess in guesses if role in guess.roles], probes)
    best = max(guesses, key=lambda guess: (round(guess.explained, 2), len(guess.roles)), default=None)
    if best is None:
        return None
    return OperatorFit(
        roles=best.roles,
        explained=best.explained,
        fitted=len(best.fitted),
        held_out=best.held_out,
        effective_rank=_effective_rank(best.shared),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """Sites of one role that G is solved from, and those it is tried on."""

    fitted: Sequence[TensorRow]
    held_out: Sequence[TensorRow]


@dataclass(slots=True)
class _Guess:
    """One G for some roles, in the directions of the probes, and how well it does."""

    roles: tuple[str, ...]
    splits: Sequence[_Split]
    shared: Float[Tensor, "d_in probes"] = field(default_factory=lambda: torch.empty(0))
    left_over: float = 0.0
    total: float = 0.0

    @property
    def fitted(self) -> list[TensorRow]:
        return [site for split in self.splits for site in split.fitted]

    @property
    def held_out(self) -> int:
        return sum(len(split.held_out) for split in self.splits)

    @property
    def explained(self) -> float:
        return 1 - self.left_over / self.total if self.total else 0.0

    def can_be_told(self, inputs: int) -> bool:
        rows = sum(site.rows[1] for site in self.fitted)
        return all(split.fitted for split in self.splits) and bool(
            self.held_out and rows >= _ROWS_PER_INPUT * inputs
        )


def _chosen(sites: Sequence[TensorRow], inputs: int) -> _Split:
    """Some of every other site to solve from, and as many of those between, from all over the network."""
    if not sites:
        return _Split(fitted=(), held_out=())
    mean_rows = sum(site.rows[1] for site in sites) / len(sites)
    most = max(_SITES_WANTED, math.ceil(_ROWS_WANTED * inputs / mean_rows))
    return _Split(fitted=_spread(sites[0::2], most), held_out=_spread(sites[1::2], most))


def _spread(sites: Sequence[TensorRow], most: int) -> Sequence[TensorRow]:
    count = min(most, len(sites))
    return [sites[number * len(sites) // count] for number in range(count)]


def _sums(
    sides: Sides, sites: Sequence[TensorRow], probes: Float[Tensor, "d_in probes"]
) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, "d_in probes"]]:
    """Σ WᵀW, and Σ WᵀΔW in the directions of the probes."""
    gram = torch.zeros(len(probes), len(probes), dtype=torch.float64)
    products = torch.zeros_like(probes)
    for site in sites:
        weight, change = matrices(sides, site.name)
        gram.addmm_(weight.T, weight)
        products.addmm_(weight.T, change @ probes)
        del weight, change  # before the next site's are made
    return gram, products


def _factor(gram: Float[Tensor, "d_in d_in"]) -> Factor:
    """The factor of a sum that is made well-conditioned where it lies, since it is large."""
    diagonal = gram.diagonal()
    diagonal += _RIDGE * diagonal.mean()
    return factorise(gram)


def _try_on(sides: Sides, name: str, guesses: Sequence[_Guess], probes: Tensor) -> None:
    weight, change = matrices(sides, name)
    seen = change @ probes
    for guess in guesses:
        guess.left_over += float((seen - weight @ guess.shared).square().sum())
        guess.total += float(seen.square().sum())


def _effective_rank(seen: Float[Tensor, "d_in probes"]) -> float:
    """(Σσ²)² / Σσ⁴ of G from what it makes of random directions: to some five percent, sixty-four of them.

    With A = GᵀG and independent normal probes, ωᵢᵀAωᵢ is tr A on average, and (ωᵢᵀAωⱼ)² is tr A²
    (Hutchinson).
    """
    products = seen.T @ seen
    count, traces = len(products), products.diagonal()
    fourth = (products.square().sum() - traces.square().sum()) / max(1, count * (count - 1))
    return float(traces.mean() ** 2 / fourth.clamp(min=1e-300))


def matrices(sides: Sides, name: str) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out d_in"]]:
    """Weight and change of one tensor as matrices in double precision."""
    rows, columns = matrix_shape(sides.tensors[name].shape)
    weight, change = torch.zeros(2, rows, columns, dtype=torch.float64)
    for block in sides.blocks(name, _CACHED):
        height, width = block.before.shape
        place = (slice(block.row, block.row + height), slice(block.column, block.column + width))
        weight[place] = block.before
        change[place] = (block.after.double() - weight[place]).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return weight, change
