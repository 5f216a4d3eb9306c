"""A named change of weights, as methods return it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.delta.algebra import added, materialise, scaled, singular_values
from surgery.delta.forms import Form
from surgery.errors import NumericsError, nearest, raise_all
from surgery.names import split


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """Changes by canonical tensor name. Delta + Delta and number × Delta are deltas; it is never a weight."""

    terms: Mapping[str, Form] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = []
        for name in self.terms:
            try:
                split(name)
            except ValueError as error:
                faults.append(str(error))
        raise_all(NumericsError, faults)
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))

    def __add__(self, other: "Delta") -> "Delta":
        """Both changes together; a tensor that both change gets the sum of its two forms."""
        terms = dict(self.terms)
        for name, form in other.terms.items():
            terms[name] = added(terms[name], form) if name in terms else form
        return Delta(terms)

    def __mul__(self, strength: float) -> "Delta":
        """The same change, ``strength`` times as strong."""
        return Delta({name: scaled(form, strength) for name, form in self.terms.items()})

    __rmul__ = __mul__

    def materialise(self, name: str) -> Float[Tensor, "*shape"]:
        """The change of one tensor in float64, the same bits on every machine.

        Raises:
            NumericsError: when the delta does not change that tensor.
        """
        return materialise(self._form(name))

    def norms(self) -> dict[str, float]:
        """Frobenius norm of the change of each tensor."""
        return {
            name: float(torch.linalg.vector_norm(singular_values(form))) for name, form in self.terms.items()
        }

    def ranks(self, tolerance: float = 1e-9) -> dict[str, int]:
        """Rank of the change of each tensor: singular values above ``tolerance`` times the largest."""
        ranks = {}
        for name, form in self.terms.items():
            values = singular_values(form)
            ranks[name] = int((values > tolerance * values.max()).sum()) if len(values) else 0
        return ranks

    def _form(self, name: str) -> Form:
        if name not in self.terms:
            guess = nearest(name, self.terms)
            raise NumericsError(f"the delta does not change {name!r}. Did you mean {guess!r}?")
        return self.terms[name]
