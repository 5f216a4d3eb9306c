"""Text on pictures: a font that is always there, wrapped and shortened to its place."""

from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import matplotlib
from PIL import ImageFont

INK: Final = "#1f2328"
# text of charts stays text, a name's "$" is one, and no random ids get into files
CHART_TEXT: Final = MappingProxyType(
    {
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "surgery",
    }
)
FAINT: Final = "#6e7781"
RULE: Final = "#d0d7de"
PAPER: Final = "#ffffff"


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in pixels; matplotlib carries it, and it has arrows and accents (Pillow's own has not)."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def line_height(face: ImageFont.FreeTypeFont) -> int:
    """Pixels from one line to the next."""
    ascent, descent = face.getmetrics()
    return ascent + descent + 2


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """The text on at most so many lines of ``width`` pixels; what does not fit ends in an ellipsis."""
    words = text.split()
    made: list[str] = []
    while words and len(made) < lines:
        taken = _fitting(words, face, width)
        made.append(" ".join(words[:taken]))
        words = words[taken:]
    if words:
        made[-1] = f"{made[-1]} {words[0]}…"
    return [_shortened(line, face, width) for line in made]


def _fitting(words: list[str], face: ImageFont.FreeTypeFont, width: int) -> int:
    """How many of the words fit on one line; one at least, also when it is too long."""
    taken = 1
    while taken < len(words) and face.getlength(" ".join(words[: taken + 1])) <= width:
        taken += 1
    return taken


def _shortened(line: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    if face.getlength(line) <= width:
        return line
    bare = line.removesuffix("…")
    while bare and face.getlength(bare.rstrip() + "…") > width:
        bare = bare[:-1]
    return bare.rstrip() + "…"
