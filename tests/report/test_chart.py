from io import BytesIO
from xml.etree import ElementTree

import pytest
from PIL import Image

from surgery.errors import SurgeryError
from surgery.record import Score
from surgery.report import ShareBar, share_chart


def score(value: float) -> Score:
    return Score(name="x", value=value, low=value - 0.05, high=value + 0.05, count=100)


BARS = [
    ShareBar(label="old concept shown", before=score(0.9), after=score(0.1)),
    ShareBar(label="new concept shown", after=score(0.8)),
]


def test_a_chart_is_an_svg_that_says_what_it_shows() -> None:
    content = share_chart(BARS, title="Ten concepts")
    text = "".join(ElementTree.fromstring(content).itertext())
    for part in (
        "Ten concepts",
        "old concept shown",
        "new concept shown",
        "before",
        "after",
        "95 % interval",
    ):
        assert part in text


def test_without_a_before_there_is_no_legend() -> None:
    content = share_chart(BARS[1:])
    assert "before" not in "".join(ElementTree.fromstring(content).itertext())


def test_the_same_shares_give_the_same_bytes() -> None:
    assert share_chart(BARS) == share_chart(BARS)
    assert share_chart(BARS, kind="png") == share_chart(BARS, kind="png")


def test_a_chart_grows_with_its_lines() -> None:
    two = Image.open(BytesIO(share_chart(BARS, kind="png")))
    four = Image.open(BytesIO(share_chart(BARS * 2, kind="png")))
    assert four.width == two.width
    assert four.height - two.height == 2 * 0.5 * 160  # half an inch a line, 160 pixels an inch


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(SurgeryError, match="no shares"):
        share_chart([])
