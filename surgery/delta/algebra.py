"""What can be done with a change: its numbers, its blocks of rows, sums, multiples, singular values."""

from math import prod
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.delta.exact import product, sliced_product
from surgery.delta.forms import Additive, Dense, Form, LowRank, Operator, Replace, Rescale, Sparse
from surgery.errors import NumericsError

_ADDITIVE = get_args(Additive)


def materialise(form: Form) -> Float[Tensor, "*shape"]:
    """The change in float64, on the CPU, the same to the last bit on every machine.

    Raises:
        NumericsError: for a form whose change depends on the weight.
    """
    match form:
        case Dense():
            return form.values.detach().to(device="cpu", dtype=torch.float64)
        case LowRank():
            return product(form.left, form.right)
        case Sparse():
            nothing = torch.zeros(form.shape, dtype=torch.float64)
            return form.places.put(nothing, form.values.detach().cpu().double())
        case _:
            raise NumericsError(
                f"a change of the form {type(form).__name__} depends on the weight; apply it to one."
            )


def change_of(form: Form, weight: Tensor) -> Float[Tensor, "*shape"]:
    """The change of one weight in float64, at strength 1, in the weight's shape.

    Args:
        form: Any form.
        weight: The base's weight, as stored.
    """
    match form:
        case Operator():
            matrix = weight.reshape(weight.shape[0], form.inputs)
            change = sliced_product(sliced_product(matrix, form.left), form.right)
        case Replace():
            change = form.places.put(weight, form.new.to(weight)).double() - weight.double()
        case Rescale():
            old = form.places.take(weight).double()
            nothing = torch.zeros(weight.shape, dtype=torch.float64)
            change = form.places.put(nothing, old * (form.factors.double() - 1))
        case _:
            change = materialise(form)
    return change.reshape(weight.shape)


def block(form: Form, start: int, stop: int) -> Form:
    """The same change of the rows ``[start, stop)`` of the weight alone."""
    match form:
        case Dense():
            return Dense(form.values[start:stop])
        case LowRank():
            return LowRank(form.left[start:stop], form.right)
        case Operator():
            return form
    places, inside = form.places.block(start, stop)
    match form:
        case Sparse():
            return Sparse(places, form.values[inside])
        case Replace():
            return Replace(places, form.new[inside], None if form.old is None else form.old[inside])
        case Rescale():
            return Rescale(places, form.factors[inside] if form.factors.ndim else form.factors)


def fits(form: Form, shape: tuple[int, ...]) -> bool:
    """Whether a form can change a weight of that shape; factors see a convolution as a matrix."""
    match form:
        case LowRank():
            return len(shape) >= 2 and form.shape == (shape[0], prod(shape[1:]))
        case Operator():
            return len(shape) >= 2 and form.inputs == prod(shape[1:])
        case _:
            return form.shape == shape


def shape_of(form: Form) -> tuple[int, ...]:
    """The shape of the change; of an operator, that of its map."""
    return (form.inputs, form.inputs) if isinstance(form, Operator) else form.shape


def is_additive(form: Form) -> bool:
    """Whether the change is the same for every weight."""
    return isinstance(form, _ADDITIVE)


def is_replacing(form: Form) -> bool:
    """Whether the form must be the only one at its places."""
    return isinstance(form, Replace | Rescale)


def scaled(form: Form, strength: float) -> Form:
    """``strength`` times the change, in float64 so that nothing is lost.

    Raises:
        NumericsError: for new values and factors, whose strength belongs to the term that holds them.
    """
    match form:
        case Dense():
            return Dense(form.values.double() * strength)
        case Sparse():
            return Sparse(form.places, form.values.double() * strength)
        case LowRank():
            return LowRank(form.left.double() * strength, form.right)
        case Operator():
            return Operator(form.left.double() * strength, form.right)
        case _:
            raise NumericsError(f"a {type(form).__name__} has no multiple; give its term a strength.")


def added(first: Form, second: Form) -> Form:
    """The sum: low ranks side by side, anything else element by element in float64.

    Raises:
        NumericsError: when the shapes differ, or a form has no sum.
    """
    if shape_of(first) != shape_of(second):
        raise NumericsError(
            f"changes of shapes {shape_of(first)} and {shape_of(second)} cannot be added; both must be of "
            "one weight."
        )
    match first, second:
        case LowRank(), LowRank():
            return LowRank(*_beside(first, second))
        case Operator(), Operator():
            return Operator(*_beside(first, second))
        case _ if is_additive(first) and is_additive(second):
            return Dense(materialise(first) + materialise(second))
    raise NumericsError(
        f"a {type(first).__name__} and a {type(second).__name__} have no sum in one form; keep them in two "
        "terms of a patch."
    )


def _beside(first: LowRank | Operator, second: LowRank | Operator) -> tuple[Tensor, Tensor]:
    return torch.cat([first.left, second.left], dim=1), torch.cat([first.right, second.right])


def singular_values(form: Form) -> Float[Tensor, " rank"]:
    """Singular values of the change as a matrix ``(d_out, rest)``, descending, in float64.

    A low-rank change is never materialised: with ``left = Q S`` and ``right.T = P R`` they are those of
    the small ``S @ R.T``. Those of an operator are of its map G.

    Raises:
        NumericsError: for a form whose change depends on the weight.
    """
    if isinstance(form, LowRank | Operator):
        small_left = torch.linalg.qr(form.left.detach().cpu().double(), mode="r").R
        small_right = torch.linalg.qr(form.right.detach().cpu().double().T, mode="r").R
        core = small_left @ small_right.T
    else:
        matrix = materialise(form)
        core = matrix.reshape(matrix.shape[0], -1) if matrix.ndim > 1 else matrix[:, None]
    values: Tensor = torch.linalg.svdvals(core)
    return values
