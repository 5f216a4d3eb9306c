"""The parts a patch adds, and their sum rounded to half precision."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoint.digest import tensor_bytes
from surgery.delta.delta import Delta
from surgery.delta.forms import Dense, Form, materialise
from surgery.errors import PatchError
from surgery.patch.rounding import add_once, round_once


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One part of a patch that can be told apart from the others.

    Attributes:
        strength: What the delta is multiplied with; 1 is as computed.
        source: Where it came from, for example the method's name.
    """

    delta: Delta
    strength: float = 1.0
    source: str = ""


def half_delta(
    terms: Iterable[Term], name: str, shape: tuple[int, ...], strength: float = 1.0
) -> Float[Tensor, "*shape"]:
    """The change of one tensor: terms added in float64 in their order, then rounded once to fp16.

    Raises:
        PatchError: when the change is too large for half precision.
    """
    total = torch.zeros(shape, dtype=torch.float64)
    for term in terms:
        if name in term.delta.terms:
            total += materialise(term.delta.terms[name]).reshape(shape) * (term.strength * strength)
    change = round_once(total, torch.float16)
    if not all_finite(change):
        raise PatchError(
            f"the change of {name!r} reaches {float(total.abs().max()):.3g}; half precision ends at 65504. "
            "Is the strength right?"
        )
    return change


def patched(name: str, weight: Tensor, change: Float[Tensor, "*shape"]) -> Tensor:
    """A weight with a half-precision change added: the one definition of what a patch does.

    Raises:
        PatchError: when a finite weight would become infinite.
    """
    edited = add_once(weight, change)
    if not all_finite(edited) and bool((weight.isfinite() & ~edited.isfinite()).any()):
        raise PatchError(
            f"tensor {name!r} would leave the range of {weight.dtype}; a smaller change was expected. "
            "Is the strength right?"
        )
    return edited


def fits(form: Form, shape: tuple[int, ...]) -> bool:
    """Whether a form can change a weight of that shape; a low rank sees a convolution as a matrix."""
    if isinstance(form, Dense):
        return form.shape == shape
    return len(shape) >= 2 and form.shape == (shape[0], math.prod(shape[1:]))


def tensors_of(form: Form) -> dict[str, Tensor]:
    """The tensors a form holds, by the names they have in a patch file."""
    if isinstance(form, Dense):
        return {"values": form.values}
    return {"left": form.left, "right": form.right}


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN; much faster than asking each."""
    return tensor.numel() == 0 or bool(tensor.abs().amax() < torch.inf)


def content_digest(term: Term) -> str:
    """A digest of everything in a term, which orders terms the same way whatever order they came in."""
    digest = hashlib.sha256(f"{term.source}\0{term.strength!r}\0".encode())
    for name in sorted(term.delta.terms):
        for part, tensor in tensors_of(term.delta.terms[name]).items():
            digest.update(f"{name}\0{part}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def term_faults(terms: Iterable[Term]) -> Iterable[str]:
    """Numbers that are no numbers."""
    for term in terms:
        if not math.isfinite(term.strength):
            yield f"a term of {term.source!r} has the strength {term.strength}; a finite number was expected."
        for name, form in term.delta.terms.items():
            if not all(all_finite(factor) for factor in tensors_of(form).values()):
                yield f"the change of {name!r} holds NaN or infinity. The method that made it went wrong."
