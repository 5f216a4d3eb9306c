"""Forms come back from their encodings, an index takes the fewest bytes, spoilt ones are named."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.delta import Form, Places, Replace, Rescale, Sparse
from surgery.errors import NumericsError
from surgery.patch.encoding import Encoded, decode, encode, gaps_of
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
        ((10, 100), [3], ("gaps", 1)),  # 2 bytes flat, 125 as bits
        ((10, 100), list(range(0, 1000, 2)), ("bits", 125)),  # 1,000 bytes flat, 500 as gaps
        ((4, 50_000), list(range(0, 200_000, 100)), ("gaps", 2000)),  # 8,000 bytes flat, 25,000 as bits
        ((4, 50_000), list(range(0, 200_000, 1000)), ("gaps", 400)),  # in two bytes each; in one it takes 800
        ((100, 10_000), [999_999], ("flat", 4)),  # gaps of two bytes: 15 without an element, and one with
        ((10, 100), [], ("flat", 0)),
    ],
)
def test_elements_are_written_in_the_fewest_bytes(
    shape: tuple[int, ...], index: list[int], written: tuple[str, int]
) -> None:
    encoded = encode(elements(shape, index))
    where = [part for name, part in encoded.parts.items() if name != "values"]
    assert (encoded.index, sum(part.numel() * part.element_size() for part in where)) == written


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16])
def test_gaps_as_long_as_the_type_can_say_and_longer_come_back(kind: torch.dtype) -> None:
    most = torch.iinfo(kind).max
    index, place = [], -1
    for skipped in (0, most - 1, most, most + 1, 2 * most, 3 * most - 1):
        place += skipped + 1
        index.append(place)
    gaps = gaps_of(torch.tensor(index), kind)
    written = Encoded(op="add_sparse", index="gaps", parts={"gaps": gaps, "values": torch.ones(len(index))})
    again = back(written, (place + 1,))
    assert isinstance(again, Sparse)
    assert again.places.index is not None
    assert again.places.index.tolist() == index


def test_rows_of_an_older_file_come_back() -> None:
    again = back(CSR, (4, 50_000))
    assert isinstance(again, Sparse)
    assert again.places.index is not None
    assert again.places.index.tolist() == [7, 50_000, 150_009]


def test_scores_of_masked_elements_come_back_in_half_precision() -> None:
    places = Places("elements", (4, 5), torch.tensor([3, 11]))
    again = back(encode(Rescale(places, torch.tensor(0.0), torch.tensor([1.0, 0.1]))), (4, 5))
    assert isinstance(again, Rescale)
    assert again.scores is not None
    assert torch.equal(again.scores, torch.tensor([1.0, 0.1]).half())
    with pytest.raises(NumericsError, match="the scores"):
        Rescale(places, torch.tensor(0.0), torch.ones(3))


def spoilt(form: Form | Encoded, **changes: Tensor | None) -> Encoded:
    encoded = form if isinstance(form, Encoded) else encode(form)
    parts = {k: v for k, v in (dict(encoded.parts) | changes).items() if v is not None}
    return Encoded(op=encoded.op, index=encoded.index, parts=parts)


GAPS = elements((4, 50_000), list(range(0, 200_000, 100)))
CSR = Encoded(
    op="add_sparse",
    index="csr",
    parts={
        "row_ends": torch.tensor([1, 2, 2, 3]),
        "columns": torch.tensor([7, 0, 9]),
        "values": torch.ones(3),
    },
)
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
        (spoilt(CSR, row_ends=torch.tensor([2, 1, 3, 3])), (4, 50_000), "do not fit each other"),
        (spoilt(CSR, columns=torch.full((3,), 50_000)), (4, 50_000), "do not fit each other"),
        (Encoded(op="set_elems", index="list", parts={"index": torch.tensor([0]), "new": torch.ones(1)}),
         SHAPE, "'gaps' or 'flat' or 'csr' or 'bits' was expected"),
        (spoilt(GAPS, gaps=torch.full((2000,), 100.0)), (4, 50_000), "no list of whole numbers"),
        (spoilt(GAPS, gaps=torch.full((2000,), 99)), (4, 50_000), "gaps of the type torch.int64"),
        (spoilt(GAPS, gaps=torch.full((2000,), 100).byte()), (4, 50_000), "numbers below 200000"),
        (spoilt(GAPS, gaps=torch.full((2000,), 255).byte()), (4, 50_000), "end without an element"),
        (Encoded(op="set_elems", index="bits", parts={"bits": torch.zeros(8, dtype=torch.uint8),
         "new": torch.ones(0)}), SHAPE, "marks 64 elements; 72 were expected"),
        (Encoded(op="set_elems", index="bits", parts={"bits": torch.zeros(9, dtype=torch.int64),
         "new": torch.ones(0)}), SHAPE, "bits of the type torch.int64"),
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
