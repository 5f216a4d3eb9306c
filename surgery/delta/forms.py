"""The forms a weight change can take.

All say what they change of the *base's* weight W, at strength s:

=========== =======================================================================
`Dense`     W + s·values
`Sparse`    W + s·values at some elements
`LowRank`   W + s·left @ right
`Operator`  W + s·W @ left @ right, one small map shared by many weights
`Replace`   W + s·(new − W) at some places: at strength 1 the new values as they are
`Rescale`   W + s·(factors − 1)·W at some places
=========== =======================================================================

The first four add up in any order. The last two are the only ones that may change an element.
"""

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from surgery.delta.places import Places
from surgery.errors import NumericsError


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A change given element by element, in the shape of the weight."""

    values: Float[Tensor, "*shape"]

    def __post_init__(self) -> None:
        _refuse_integers(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change."""
        return tuple(self.values.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A change of single elements; nothing elsewhere."""

    places: Places
    values: Float[Tensor, " places"]

    def __post_init__(self) -> None:
        if self.places.kind != "elements":
            raise NumericsError(f"a sparse change names {self.places.kind}; elements were expected.")
        _refuse_integers(self.values)
        _refuse_shape("values", self.values, self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change."""
        return self.places.shape


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The change ``left @ right``; for a convolution ``d_in`` runs over inputs and kernel positions."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]

    def __post_init__(self) -> None:
        _refuse_factors(self.left, self.right)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change, as a matrix."""
        return self.left.shape[0], self.right.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """The change ``W @ left @ right`` of a weight W, seen as a matrix ``(d_out, d_in)``: W' = W (I + G)."""

    left: Float[Tensor, "d_in rank"]
    right: Float[Tensor, "rank d_in"]

    def __post_init__(self) -> None:
        _refuse_factors(self.left, self.right)
        if self.left.shape[0] != self.right.shape[1]:
            raise NumericsError(
                f"an operator has factors of {self.left.shape[0]} and {self.right.shape[1]} inputs; as many "
                "on both sides were expected."
            )

    @property
    def inputs(self) -> int:
        """Inputs of the weights that it fits."""
        return int(self.left.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """New values at some places, in the type the weight is stored in, and perhaps the old ones."""

    places: Places
    new: Float[Tensor, "*places"]
    old: Float[Tensor, "*places"] | None = None

    def __post_init__(self) -> None:
        for what, values in (("new values", self.new), ("old values", self.old)):
            if values is None:
                continue
            _refuse_integers(values)
            _refuse_shape(what, values, self.places)
        if self.old is not None and self.old.dtype != self.new.dtype:
            raise NumericsError(
                f"the new values are {self.new.dtype} and the old ones {self.old.dtype}; they must be alike."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.places.shape


@dataclass(frozen=True, slots=True, eq=False)
class Rescale:
    """Factors for the values at some places: 0 erases, 1 keeps, 2 doubles.

    ``scores`` say how much speaks for each place, so that fewer can be chosen later; they change nothing.
    """

    places: Places
    factors: Float[Tensor, "*places"]
    scores: Float[Tensor, "*places"] | None = None

    def __post_init__(self) -> None:
        _refuse_integers(self.factors)
        if self.factors.ndim:
            _refuse_shape("factors", self.factors, self.places)
        if self.scores is not None:
            _refuse_integers(self.scores)
            _refuse_shape("scores", self.scores, self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.places.shape


Additive: TypeAlias = Dense | Sparse | LowRank
"""Forms whose change does not depend on the weight."""

Form: TypeAlias = Additive | Operator | Replace | Rescale


def _refuse_integers(tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise NumericsError(f"a change has the type {tensor.dtype}; floating point was expected.")


def _refuse_factors(left: Tensor, right: Tensor) -> None:
    _refuse_integers(left)
    _refuse_integers(right)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise NumericsError(
            f"the factors have shapes {tuple(left.shape)} and {tuple(right.shape)}; (d_out, rank) and "
            "(rank, d_in) were expected."
        )


def _refuse_shape(what: str, values: Tensor, places: Places) -> None:
    if tuple(values.shape) != places.values_shape:
        raise NumericsError(
            f"the {what} have the shape {tuple(values.shape)}; {places.values_shape} was expected."
        )
