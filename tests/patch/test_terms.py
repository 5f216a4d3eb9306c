"""What a patch makes of a weight, element by element against exact arithmetic; who may not share a tensor."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from surgery.delta import Delta, Form, Replace
from surgery.delta.algebra import block
from surgery.errors import PatchError
from surgery.patch import Term
from surgery.patch.terms import conflicts, content_digest, edited, forms_of
from tests.delta.test_forms import FORMS, NAMES, places, values, weight

NAME = "unet/a.weight"


def term(name: str, strength: float = 1.0) -> Term:
    return Term(delta=Delta({NAME: FORMS[name]}), strength=strength, source=name)


def after(*terms: Term, strength: float = 1.0, base: Tensor | None = None) -> Tensor:
    return edited(forms_of(terms, NAME, strength), NAME, weight(), base)


def nearest_half(exact: Fraction) -> float:
    """Rounded once to half precision: numpy rounds a float64 directly, and these fit float64 exactly."""
    assert Fraction(float(exact)) == exact
    return float(np.float16(float(exact)))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -1.0])
@pytest.mark.parametrize("with_old", [True, False])
def test_new_values_move_from_the_old_ones_by_the_strength(
    kind: str, strength: float, with_old: bool
) -> None:
    known = places(kind).take(weight()) if with_old else None
    form = Replace(places(kind), values(kind), known)
    found = after(Term(delta=Delta({NAME: form})), strength=strength)
    old = places(kind).take(weight()).flatten().tolist()
    new = values(kind).flatten().tolist()
    expected = [
        nearest_half(Fraction(a) + Fraction(strength) * (Fraction(b) - Fraction(a)))
        for a, b in zip(old, new, strict=True)
    ]
    assert places(kind).take(found).flatten().tolist() == expected
    outside = ~places(kind).mask()
    assert torch.equal(found[outside], weight()[outside])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_values_that_are_not_the_old_ones_move_as_far_as_these(kind: str, strength: float) -> None:
    known = places(kind).take(weight()) + 1
    found = after(Term(delta=Delta({NAME: Replace(places(kind), values(kind), known)})), strength=strength)
    expected = [
        nearest_half(Fraction(a) + Fraction(strength) * (Fraction(b) - Fraction(c)))
        for a, b, c in zip(
            places(kind).take(weight()).flatten().tolist(),
            values(kind).flatten().tolist(),
            known.flatten().tolist(),
            strict=True,
        )
    ]
    assert places(kind).take(found).flatten().tolist() == expected


def test_a_factor_scales_once_and_one_keeps_every_bit() -> None:
    found = places("elements").take(after(term("rescale by one factor", 2.0)))  # 1 + 2 (0.5 − 1) = 0
    assert found.tolist() == [0.0] * 5
    assert torch.equal(after(term("rescale by one factor"), strength=0.0), weight())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_strength_nought_gives_identical_bits(name: str, dtype: torch.dtype) -> None:
    stored = weight().to(dtype)
    stored[0, 0, 0] = -0.0
    form = FORMS[name]
    found = edited([(form, 0.0)], NAME, stored)
    assert torch.equal(found.view(torch.uint8), stored.view(torch.uint8))


@pytest.mark.parametrize("name", FORMS)
def test_editing_by_blocks_of_rows_is_editing_the_whole(name: str) -> None:
    parts = [
        edited([(block(FORMS[name], start, start + 2), 0.7)], NAME, weight()[start : start + 2])
        for start in (0, 2, 4)
    ]
    assert torch.equal(torch.cat(parts), edited([(FORMS[name], 0.7)], NAME, weight()))


def test_terms_add_up_in_any_order_and_are_those_of_the_base() -> None:
    parts = [term("dense"), term("low rank", 0.3), term("operator"), term("sparse")]
    parts.sort(key=content_digest)
    assert torch.equal(
        after(*parts), after(*sorted([parts[2], parts[0], parts[3], parts[1]], key=content_digest))
    )
    moved = weight() + 1
    one = edited(forms_of([term("operator")], NAME), NAME, moved, base=weight()) - moved
    assert torch.allclose(one.float(), (after(term("operator")) - weight()).float(), atol=0.05)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("replace rows", "dense"),
        ("replace rows", "operator"),
        ("replace columns", "rescale elements"),
        ("rescale all", "low rank"),
        ("replace elements", "sparse"),
    ],
)
def test_new_values_share_their_places_with_nobody(first: str, second: str) -> None:
    found = list(conflicts([term(first), term(second)]))
    assert len(found) == 1
    assert repr(first) in found[0]
    assert repr(second) in found[0]


@pytest.mark.parametrize("name", ["replace rows", "rescale elements"])
def test_equal_new_values_may_come_twice(name: str) -> None:
    assert not list(conflicts([term(name), term(name)]))
    assert torch.equal(after(term(name), term(name)), after(term(name)))
    assert list(conflicts([term(name), term(name, 0.5)]))


def test_a_change_beyond_half_precision_is_refused() -> None:
    form: Form = FORMS["dense"]
    with pytest.raises(PatchError, match="half precision ends at 65504"):
        edited([(form, 1e6)], NAME, weight())
