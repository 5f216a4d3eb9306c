from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.errors import SurgeryError
from surgery.report import SheetRow, contact_sheet, png

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)


def plain(*colours: tuple[int, int, int], side: int = 16) -> np.ndarray[Any, Any]:
    """Pictures of one colour each."""
    return np.stack([np.full((side, side, 3), colour, np.uint8) for colour in colours])


def places(sheet: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of the patches of a colour, each patch a full rectangle."""
    mask = (np.asarray(sheet) == colour).all(axis=2)
    boxes = []
    while mask.any():
        top, left = np.argwhere(mask)[0]
        right = left + int(np.argmin(np.append(mask[top, left:], False)))
        bottom = top + int(np.argmin(np.append(mask[top:, left], False)))
        assert mask[top:bottom, left:right].all()
        mask[top:bottom, left:right] = False
        boxes.append((int(left), int(top), int(right), int(bottom)))
    return boxes


def rows() -> list[SheetRow]:
    return [
        SheetRow(
            label="cat → pizza", groups=(plain(RED, BLUE), plain(GREEN, GREEN)), note="a photo of a cat"
        ),
        SheetRow(label="dog → " + "a long name " * 9, groups=(plain(BLUE, RED), plain(GREEN, RED))),
    ]


def test_same_seeds_stand_in_the_same_columns_before_and_after() -> None:
    sheet = contact_sheet(rows(), columns=["seed 1", "seed 2"], cell=64)
    red, blue, green = places(sheet, RED), places(sheet, BLUE), places(sheet, GREEN)
    before = [red[0][0], blue[0][0]]
    after = [green[0][0], green[1][0]]
    assert after[1] - after[0] == before[1] - before[0]
    assert after[0] > before[1] + 64
    assert [blue[1][0], red[1][0]] == before
    assert [green[2][0], red[2][0]] == after


def test_every_picture_is_drawn_whole_at_the_size_of_its_cell() -> None:
    sheet = contact_sheet(rows(), cell=64)
    boxes = [box for colour in (RED, BLUE, GREEN) for box in places(sheet, colour)]
    assert len(boxes) == 8
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(64, 64)}


def test_labels_stay_left_of_the_pictures_and_inside_their_row() -> None:
    sheet = contact_sheet(rows(), cell=64)
    first = min(box[0] for box in places(sheet, BLUE) + places(sheet, RED))
    dark = np.argwhere(np.asarray(sheet.convert("L"))[:, : first - 1] < 150)
    assert dark[:, 1].max() < first - 10
    tops = sorted({box[1] for colour in (RED, BLUE, GREEN) for box in places(sheet, colour)})
    # the rows' text, split at the middle of the gap between them
    middle = tops[1] - 3
    assert all(tops[0] <= row < tops[0] + 64 for row in dark[dark[:, 0] < middle][:, 0])
    assert all(tops[1] <= row < tops[1] + 64 for row in dark[dark[:, 0] >= middle][:, 0])


def test_a_title_and_headings_only_add_height() -> None:
    bare = contact_sheet(rows(), groups=("", ""), cell=64)
    full = contact_sheet(rows(), columns=["seed 1", "seed 2"], title="Ten concepts", subtitle="x", cell=64)
    assert full.width == bare.width
    assert full.height > bare.height


def test_a_picture_that_is_not_square_keeps_its_shape() -> None:
    wide = np.full((1, 16, 32, 3), RED, np.uint8)
    sheet = contact_sheet([SheetRow(label="wide", groups=(wide,))], groups=("",), cell=64)
    ((left, top, right, bottom),) = places(sheet, RED)
    assert (right - left, bottom - top) == (64, 32)


def test_rows_that_do_not_fit_are_all_named() -> None:
    broken = [
        SheetRow(label="one", groups=(plain(RED),)),
        SheetRow(label="two", groups=(plain(RED), plain(RED, BLUE))),
    ]
    with pytest.raises(SurgeryError) as caught:
        contact_sheet(broken, columns=["seed 1"])
    assert "row 'one' has [1]" in str(caught.value)
    assert "row 'two' has [1, 2]" in str(caught.value)


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(SurgeryError, match="without rows"):
        contact_sheet([])


def test_a_png_holds_the_pixels_and_is_the_same_each_time() -> None:
    sheet = contact_sheet(rows(), cell=32)
    content = png(sheet)
    assert content == png(contact_sheet(rows(), cell=32))
    assert np.array_equal(np.asarray(Image.open(BytesIO(content))), np.asarray(sheet))
