"""The chart of probes."""

from io import BytesIO

import pytest
from PIL import Image

from surgery.errors import SurgeryError
from surgery.report import ProbeLine, probe_chart

LINE = ProbeLine(
    label="cat",
    timesteps=(50, 150),
    curves={"drift": (0.0, 0.1), "energy": (1.0, 0.4), "alignment": (1.0, -0.2)},
)


def test_the_same_lines_give_the_same_bytes() -> None:
    assert probe_chart([LINE]) == probe_chart([LINE])
    assert Image.open(BytesIO(probe_chart([LINE]))).size[0] > 1000


def test_every_phrase_has_its_name_and_the_ninth_is_counted() -> None:
    text = probe_chart([LINE], "svg").decode()
    assert "cat" in text and "Alignment of the concept" in text
    many = [ProbeLine(label=f"phrase {n}", timesteps=LINE.timesteps, curves=LINE.curves) for n in range(9)]
    text = probe_chart(many, "svg").decode()
    assert "phrase 7" in text and "phrase 8" not in text and "and 1 more" in text


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(SurgeryError, match="no probes"):
        probe_chart([])
