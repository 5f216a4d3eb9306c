"""Forms come back from their encodings, an index takes the fewest bytes, spoilt ones are named."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.delta import Form, Places, Replace, Rescale, Sparse
from surgery.errors import NumericsError
from surgery.patch.encoding import Encoded, decode, encode
from tests.delta.test_forms import FORMS, SHAPE


def back(encoded: Encoded, shape: tuple[int, ...] = SHAPE) -> Form:
    return decode(encoded.op, encoded.index, encoded.parts, shape)


def tensors(form: Form) -> dict[str, Tensor]:
    return dict(encode(form).parts)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_comes_back(name: str) -> None:
    form = FORMS[name]
    again = back(encode(form))
    assert type(again) is type(form)
    assert tensors(again).keys() == tensors(form).keys()
    assert all(torch.equal(again_part, tensors(form)[part]) for part, again_part in tensors(again).items())


def elements(shape: tuple[int, ...], index: list[int]) -> Sparse:
    return Sparse(Places("elements", shape, torch.tensor(index, dtype=torch.int64)), torch.ones(len(index)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_set_of_elements_comes_back_from_any_encoding(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(5,), (3, 8), (40, 2), (2, 3, 5), (1, 300)]))
    chosen = data.draw(st.sets(st.integers(0, prod(shape) - 1)))
    form = elements(shape, sorted(chosen))
    again = back(encode(form), shape)
    assert isinstance(again, Sparse)
    assert again.places.index is not None
    assert again.places.index.tolist() == sorted(chosen)


@pytest.mark.parametrize(
    ("shape", "index", "written"),
    [
        ((10, 100), [3], "flat"),  # 2 bytes against 22 and 125
        ((10, 100), list(range(0, 1000, 2)), "bits"),  # 1,000 bytes against 1,020 and 125
        ((4, 50_000), list(range(0, 200_000, 100)), "csr"),  # 8,000 bytes flat, 4,016 by rows, 25,000 as bits
    ],
)
def test_elements_are_written_in_the_fewest_bytes(
    shape: tuple[int, ...], index: list[int], written: str
) -> None:
    assert encode(elements(shape, index)).index == written


def spoilt(form: Form, **changes: Tensor | None) -> Encoded:
    encoded = encode(form)
    parts = {k: v for k, v in (dict(encoded.parts) | changes).items() if v is not None}
    return Encoded(op=encoded.op, index=encoded.index, parts=parts)


CSR = elements((4, 50_000), list(range(0, 200_000, 100)))
ROWS = Replace(Places("rows", SHAPE, torch.tensor([0, 1])), torch.ones(2, 4, 3).half())


@pytest.mark.parametrize(
    ("encoded", "shape", "message"),
    [
        (spoilt(ROWS, index=torch.tensor([1, 0])), SHAPE, "ascending whole numbers below 6"),
        (spoilt(ROWS, index=torch.tensor([0, 6])), SHAPE, "ascending whole numbers below 6"),
        (spoilt(ROWS, index=torch.tensor([0.0, 1.0])), SHAPE, "no list of whole numbers"),
        (spoilt(ROWS, index=None), SHAPE, r"has the parts \['new'\]; \['index', 'new'\] were expected"),
        (spoilt(ROWS, new=torch.ones(2, 4, 2).half()), SHAPE, r"\(2, 4, 3\) was expected"),
        (spoilt(ROWS, old=torch.ones(2, 4, 3)), SHAPE, "they must be alike"),
        (spoilt(CSR, row_ends=torch.tensor([1, 2, 3])), (4, 50_000), "has 3 ends of rows"),
        (spoilt(CSR, row_ends=torch.tensor([900, 800, 2000, 2000])), (4, 50_000), "do not fit each other"),
        (spoilt(CSR, columns=torch.full((2000,), 50_000)), (4, 50_000), "do not fit each other"),
        (Encoded(op="set_elems", index="list", parts={"index": torch.tensor([0]), "new": torch.ones(1)}),
         SHAPE, "'flat' or 'csr' or 'bits' was expected"),
        (Encoded(op="set_elems", index="bits", parts={"bits": torch.zeros(8, dtype=torch.uint8),
         "new": torch.ones(0)}), SHAPE, "marks 64 elements; 72 were expected"),
        (Encoded(op="scale_elems", index="list", parts={"index": torch.tensor([0]), "old": torch.ones(1),
         "factors": torch.ones(1)}), SHAPE, "has the parts"),
    ],
)  # fmt: skip
def test_a_spoilt_encoding_is_refused(encoded: Encoded, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises((ValueError, NumericsError), match=message):
        back(encoded, shape)


def test_one_factor_serves_all_places() -> None:
    form = Rescale(Places("rows", SHAPE, torch.tensor([2])), torch.tensor(0.0))
    again = back(encode(form))
    assert isinstance(again, Rescale)
    assert again.factors.ndim == 0
