"""Changes of weights: named, typed, and closed under sums and scalings."""

from surgery.delta.delta import Delta
from surgery.delta.forms import Additive, Dense, Form, LowRank, Operator, Replace, Rescale, Sparse
from surgery.delta.places import Places

__all__ = [
    "Additive",
    "Delta",
    "Dense",
    "Form",
    "LowRank",
    "Operator",
    "Places",
    "Replace",
    "Rescale",
    "Sparse",
]
