"""The parts of a patch, and what they make of a weight: the one definition of applying."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoint.digest import tensor_bytes
from surgery.delta.algebra import block, change_of, is_replacing, materialise
from surgery.delta.delta import Delta
from surgery.delta.forms import Form, Operator, Replace, Rescale
from surgery.delta.places import Places
from surgery.errors import PatchError
from surgery.patch.encoding import encode
from surgery.patch.rounding import add_once, bits_of, round_once


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


def refuse_strength(strength: float) -> None:
    """Refuse to multiply a change with NaN or infinity.

    Raises:
        PatchError: when ``strength`` is no finite number.
    """
    if not math.isfinite(strength):
        raise PatchError(f"the strength is {strength}; a finite number was expected (1 is as computed).")


def forms_of(
    terms: Iterable[Term], name: str, strength: float = 1.0, rows: tuple[int, int] | None = None
) -> list[tuple[Form, float]]:
    """The forms that change one tensor, or rows of it, each with its strength, in the order of the terms."""
    forms = [(term.delta.terms[name], term.strength * strength) for term in terms if name in term.delta.terms]
    return forms if rows is None else [(block(form, *rows), s) for form, s in forms]


def half_change(
    forms: Sequence[tuple[Form, float]], name: str, base: Tensor
) -> Float[Tensor, "*shape"] | None:
    """What the forms that add up change: their float64 sum, rounded once to fp16; None without such forms.

    Adding a half-precision change gives one and the same result in all loaders, whether they add in half or
    in single precision.

    Raises:
        PatchError: when the change is too large for half precision.
    """
    total: Tensor | None = None
    for form, strength in forms:
        if not is_replacing(form):
            part = change_of(form, base) * strength
            total = part if total is None else total + part
    if total is None:
        return None
    change = round_once(total, torch.float16)
    if not all_finite(change):
        raise PatchError(
            f"the change of {name!r} reaches {float(total.abs().max()):.3g}; half precision ends at 65504. "
            "Is the strength right?"
        )
    return change


def edited(
    forms: Sequence[tuple[Form, float]], name: str, weight: Tensor, base: Tensor | None = None
) -> Tensor:
    """A weight with a patch in it.

    The sum of all changes that add up is rounded to half precision and added, rounding once more; then new
    and rescaled values take their places. All are changes of the base's weight, whatever else was added.

    Args:
        forms: From `forms_of`.
        name: Canonical name, for errors.
        weight: The weight to change, as stored.
        base: The base's own weight, where ``weight`` has other patches in it already.

    Raises:
        PatchError: when a finite weight would become infinite.
    """
    base = weight if base is None else base
    change = half_change(forms, name, base)
    result = weight if change is None else add_once(weight, change)
    for form, strength in forms:
        if isinstance(form, Replace):
            result = form.places.put(result, _replaced(form, strength, form.places.take(base)))
    scales = [
        (form.places, _factors(form, strength)) for form, strength in forms if isinstance(form, Rescale)
    ]
    for places, factors in _strongest(scales):
        old = places.take(base)
        scaled = round_once(old.double() * factors, base.dtype)
        result = places.put(result, torch.where(factors == 1, old, scaled))
    if not all_finite(result) and bool((weight.isfinite() & ~result.isfinite()).any()):
        raise PatchError(
            f"tensor {name!r} would leave the range of {weight.dtype}; a smaller change was expected. "
            "Is the strength right?"
        )
    return result


def _factors(form: Rescale, strength: float) -> Tensor:
    """What the weights are multiplied with (float64).

    Raises:
        PatchError: when weights that were to be made smaller would change their sign.
    """
    factors = 1 + strength * (form.factors.double() - 1)
    if bool(((form.factors >= 0) & (factors < 0)).any()):
        most = float(1 / (1 - form.factors.double().min()))
        raise PatchError(
            f"at the strength {strength:g} masked weights would come out with the opposite sign; expected at "
            f"most {most:g}, which takes all of them away."
        )
    return factors


def _strongest(scales: Sequence[tuple[Places, Tensor]]) -> Sequence[tuple[Places, Tensor]]:
    """The same with each element once: where several claim it, the smallest factor counts."""
    if len(scales) < 2:
        return scales
    shape = scales[0][0].shape
    least = torch.full(shape, torch.inf, dtype=torch.float64)
    for places, factors in scales:
        least = places.put(least, torch.minimum(places.take(least), factors))
    index = least.flatten().isfinite().nonzero().flatten()
    return [(Places("elements", shape, index), least.flatten()[index])]


def _replaced(form: Replace, strength: float, found: Tensor) -> Tensor:
    """The values in the place of ``found``; a fine-tune's are moved as far as the base's would be."""
    if strength == 0:
        return found
    new = form.new.to(found)
    if strength != 1:
        new = round_once(found.double() + strength * (form.new.double() - found.double()), found.dtype)
    if form.old is None:
        return new
    moved = round_once(found.double() + strength * (form.new.double() - form.old.double()), found.dtype)
    return torch.where(found == form.old.to(found), new, moved)


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN; much faster than asking each."""
    return tensor.numel() == 0 or bool(tensor.abs().amax() < torch.inf)


def content_digest(term: Term) -> str:
    """A digest of everything in a term, which orders terms the same way whatever order they came in."""
    digest = hashlib.sha256(f"{term.source}\0{term.strength!r}\0".encode())
    for name in sorted(term.delta.terms):
        encoded = encode(term.delta.terms[name])
        digest.update(f"{name}\0{encoded.op}\0{encoded.index}\0".encode())
        for part, tensor in sorted(encoded.parts.items()):
            digest.update(f"{part}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def term_faults(terms: Iterable[Term]) -> Iterator[str]:
    """Numbers that are no numbers."""
    for term in terms:
        if not math.isfinite(term.strength):
            yield f"a term of {term.source!r} has the strength {term.strength}; a finite number was expected."
        for name, form in term.delta.terms.items():
            parts = encode(form).parts.values()
            if not all(all_finite(part) for part in parts if part.dtype.is_floating_point):
                yield f"the change of {name!r} holds NaN or infinity. The method that made it went wrong."


def conflicts(terms: Sequence[Term]) -> Iterator[str]:
    """Pairs of terms that cannot both be in one patch; each form must fit its tensor.

    New and rescaled values must be alone at their places, unless two terms bring the same ones, or both make
    the weights smaller.
    """
    for name in sorted({name for term in terms for name in term.delta.terms}):
        yield from _conflicts_at(terms, name)


def shared_masks(terms: Sequence[Term]) -> Iterator[tuple[int, int, int]]:
    """Places of two terms that both rescale some elements, and how many; the stronger one counts there."""
    for (first, one), (second, other) in combinations(enumerate(terms), 2):
        mine, theirs = one.delta.terms, other.delta.terms
        shared = [
            (mine[name], theirs[name])
            for name in mine.keys() & theirs.keys()
            if isinstance(mine[name], Rescale) and isinstance(theirs[name], Rescale)
        ]
        count = sum(int((_claimed(a) & _claimed(b)).sum()) for a, b in shared)
        if count:
            yield first, second, count


def _conflicts_at(terms: Iterable[Term], name: str) -> Iterator[str]:
    parties = [(term, term.delta.terms[name]) for term in terms if name in term.delta.terms]
    for (first, one), (second, other) in combinations(parties, 2):
        if not (is_replacing(one) or is_replacing(other)):
            continue
        count = _contested(one, other, first.strength == second.strength)
        if count:
            yield (
                f"{first.source!r} and {second.source!r} both claim {count} elements of {name!r}; new or "
                "rescaled values must be alone. Apply one patch after the other, or leave one out."
            )


def _contested(one: Form, other: Form, same_strength: bool) -> int:
    """How many elements two forms claim, of which at least one is replacing, without agreeing on them."""
    both = _claimed(one) & _claimed(other)
    if same_strength and isinstance(one, Replace) and isinstance(other, Replace):
        both &= _spread(one.places, one.new) != _spread(other.places, other.new)
    if isinstance(one, Rescale) and isinstance(other, Rescale):
        if _shrinks(one) and _shrinks(other):
            return 0  # the stronger one counts
        if same_strength:
            both &= _spread(one.places, one.factors) != _spread(other.places, other.factors)
    return int(both.sum())


def _shrinks(form: Rescale) -> bool:
    return bool(((form.factors >= 0) & (form.factors <= 1)).all())


def _spread(places: Places, values: Tensor) -> Tensor:
    """Bits of values at their places, zeros elsewhere (flat)."""
    nothing = torch.zeros(places.shape, dtype=torch.float64)
    return bits_of(places.put(nothing, values.double())).flatten()


def _claimed(form: Form) -> Tensor:
    """The elements that a form changes whatever the weight (bool, flat); an operator claims them all."""
    match form:
        case Operator():
            return torch.ones(1, dtype=torch.bool)
        case Replace() | Rescale():
            return form.places.mask().flatten()
        case _:
            return (materialise(form) != 0).flatten()
