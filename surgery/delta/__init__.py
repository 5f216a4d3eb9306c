"""Changes of weights: named, typed, and closed under sums and scalings."""

from surgery.delta.delta import Delta
from surgery.delta.forms import Dense, Form, LowRank

__all__ = ["Delta", "Dense", "Form", "LowRank"]
