"""What each form does to a weight, and that blocks of rows see the same."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from surgery.delta import Delta, Dense, Form, LowRank, Operator, Places, Replace, Rescale, Sparse
from surgery.delta.algebra import added, block, change_of, fits, scaled
from surgery.errors import NumericsError

SHAPE = (6, 4, 3)
NAMES = ("rows", "columns", "elements", "all")


def weight(seed: int = 0) -> Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed)).half()


def places(kind: str) -> Places:
    match kind:
        case "rows":
            return Places("rows", SHAPE, torch.tensor([1, 2, 5]))
        case "columns":
            return Places("columns", SHAPE, torch.tensor([0, 3]))
        case "elements":
            return Places("elements", SHAPE, torch.tensor([0, 11, 12, 40, 71]))
        case _:
            return Places("all", SHAPE)


def values(kind: str, seed: int = 7) -> Tensor:
    return torch.randn(*places(kind).values_shape, generator=torch.Generator().manual_seed(seed)).half()


def forms() -> Iterator[tuple[str, Form]]:
    generator = torch.Generator().manual_seed(3)
    yield "dense", Dense(torch.randn(*SHAPE, generator=generator))
    yield "low rank", LowRank(torch.randn(6, 2, generator=generator), torch.randn(2, 12, generator=generator))
    yield (
        "operator",
        Operator(torch.randn(12, 2, generator=generator), torch.randn(2, 12, generator=generator)),
    )
    yield "sparse", Sparse(places("elements"), values("elements"))
    for kind in NAMES:
        yield f"replace {kind}", Replace(places(kind), values(kind), values(kind, 8))
        yield f"rescale {kind}", Rescale(places(kind), values(kind))
    yield "rescale by one factor", Rescale(places("elements"), torch.tensor(0.5))


FORMS = dict(forms())


@pytest.mark.parametrize("kind", NAMES)
def test_values_are_taken_from_and_put_to_the_same_places(kind: str) -> None:
    put = places(kind).put(weight(), values(kind))
    assert torch.equal(places(kind).take(put), values(kind))
    outside = ~places(kind).mask()
    assert torch.equal(put[outside], weight()[outside])
    assert int(places(kind).mask().sum()) == values(kind).numel()


@pytest.mark.parametrize("index", [[2, 1], [1, 1], [-1, 2], [0, 6]])
def test_rows_out_of_order_twice_or_beyond_the_weight_are_refused(index: list[int]) -> None:
    with pytest.raises(NumericsError, match="ascending whole numbers below 6"):
        Places("rows", SHAPE, torch.tensor(index))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 6), (0, 2, 2, 5, 6)])
def test_blocks_of_rows_change_what_the_whole_form_changes(name: str, cuts: tuple[int, ...]) -> None:
    form, whole = FORMS[name], change_of(FORMS[name], weight())
    parts = [change_of(block(form, start, stop), weight()[start:stop]) for start, stop in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_fits_its_weight_and_no_other(name: str) -> None:
    assert fits(FORMS[name], SHAPE)
    assert not fits(FORMS[name], (6, 4, 4))


def test_an_operator_is_a_map_of_the_inputs() -> None:
    form = FORMS["operator"]
    assert isinstance(form, Operator)
    matrix = weight().double().reshape(6, 12)
    expected = (matrix @ form.left.double()) @ form.right.double()
    assert torch.allclose(change_of(form, weight()).reshape(6, 12), expected, rtol=0, atol=1e-9)


def test_new_values_and_factors_say_what_they_change() -> None:
    old = places("elements").take(weight()).double()
    replaced = places("elements").take(change_of(FORMS["replace elements"], weight()))
    assert torch.equal(replaced, values("elements").double() - old)
    halved = places("elements").take(change_of(FORMS["rescale by one factor"], weight()))
    assert torch.equal(halved, -0.5 * old)


def test_operators_of_one_weight_add_up() -> None:
    first, second = FORMS["operator"], scaled(FORMS["operator"], 3.0)
    both = change_of(added(first, second), weight())
    assert torch.allclose(both, 4 * change_of(first, weight()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["replace rows", "rescale rows"])
def test_new_values_have_no_multiple_and_no_sum(name: str) -> None:
    with pytest.raises(NumericsError, match="give its term a strength"):
        scaled(FORMS[name], 2.0)
    with pytest.raises(NumericsError, match="keep them in two terms"):
        added(FORMS[name], FORMS["dense"])


def test_the_size_of_a_change_that_depends_on_the_weight_is_not_guessed() -> None:
    with pytest.raises(NumericsError, match="depends on the weight"):
        Delta({"unet/a.weight": FORMS["replace rows"]}).norms()
