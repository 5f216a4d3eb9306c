"""Whether one small map G explains the changes of many weights that read the same input: ΔW = W G."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.audit.sides import Sides
from surgery.numerics import factorise
from surgery.report.audit_record import TensorRow

KEYS, VALUES = "cross_key", "cross_value"
_HYPOTHESES: Final = ((KEYS, VALUES), (KEYS,), (VALUES,))
# Fewer rows than this many times the inputs leave G open in some direction, and fitting proves nothing.
_ROWS_PER_INPUT: Final = 1.5
_RIDGE: Final = 1e-9  # of the mean eigenvalue; only against singular systems


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFit:
    """How well one G, solved from every other site, predicts the sites between.

    Attributes:
        roles: Whose changes it explains.
        explained: Share of the squared change of the held-out sites; negative where G makes it worse.
        fitted: Sites that G was solved from.
        held_out: Sites that it was tried on.
        effective_rank: (Σσ²)² / Σσ⁴ of G.
    """

    roles: tuple[str, ...]
    explained: float
    fitted: int
    held_out: int
    effective_rank: float


def fit_operator(sides: Sides, rows: Sequence[TensorRow]) -> OperatorFit | None:
    """The best of three guesses: one G for keys and values, one for the keys, one for the values.

    None where there is nothing to tell: no base, too few changed sites, or too few outputs to determine G.
    """
    if not sides.has_base:
        return None
    sites = [row for row in rows if row.role in (KEYS, VALUES) and row.state == "changed"]
    fits = [
        fit
        for roles in _HYPOTHESES
        if all(any(site.role == role for site in sites) for role in roles)
        and (fit := _fit(sides, [site for site in sites if site.role in roles], roles)) is not None
    ]
    return max(fits, key=lambda fit: (round(fit.explained, 2), len(fit.roles)), default=None)


def matrices(sides: Sides, name: str) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out d_in"]]:
    """Weight and change of one tensor as matrices in double precision."""
    weights, changes = [], []
    for block in sides.blocks(name):
        weight = block.before.double()
        weights.append(weight)
        changes.append((block.after.double() - weight).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    return torch.cat(weights), torch.cat(changes)


def _fit(sides: Sides, sites: Sequence[TensorRow], roles: tuple[str, ...]) -> OperatorFit | None:
    inputs = sites[0].columns[1]
    fitted = [site for role in roles for site in [one for one in sites if one.role == role][0::2]]
    held_out = [site for site in sites if site not in fitted]
    enough = sum(site.rows[1] for site in fitted) >= _ROWS_PER_INPUT * inputs
    if not held_out or not enough or any(site.columns[1] != inputs for site in sites):
        return None
    gram = torch.zeros(inputs, inputs, dtype=torch.float64)
    right = torch.zeros_like(gram)
    for site in fitted:
        weight, change = matrices(sides, site.name)
        gram += weight.T @ weight
        right += weight.T @ change
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    shared = factorise(gram).solve(right)
    left_over, total = 0.0, 0.0
    for site in held_out:
        weight, change = matrices(sides, site.name)
        left_over += float((change - weight @ shared).square().sum())
        total += float(change.square().sum())
    squares = torch.linalg.svdvals(shared).square()
    return OperatorFit(
        roles=roles,
        explained=1 - left_over / total if total else 0.0,
        fitted=len(fitted),
        held_out=len(held_out),
        effective_rank=float(squares.sum() ** 2 / squares.square().sum().clamp(min=1e-300)),
    )
