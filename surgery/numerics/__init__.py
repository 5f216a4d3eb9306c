"""Second moments, ridge solves and subspaces in float64; this room knows no model."""

from surgery.numerics.cholesky import Factor, factorise
from surgery.numerics.moments import MomentSum, pack, shrink, unpack
from surgery.numerics.ridge import Prior, Solution, prior, solve
from surgery.numerics.subspace import break_even_rank, join_terms, null_space

__all__ = [
    "Factor",
    "MomentSum",
    "Prior",
    "Solution",
    "break_even_rank",
    "factorise",
    "join_terms",
    "null_space",
    "pack",
    "prior",
    "shrink",
    "solve",
    "unpack",
]
