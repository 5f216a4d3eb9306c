"""A plain grid of many pictures with their captions."""

from collections.abc import Sequence
from typing import Final

from PIL import Image

from surgery.errors import SurgeryError
from surgery.report.strips import MARGIN, Pictures, paste, stacked, strip, titles
from surgery.report.text import INK, font, line_height, wrapped

_GAP: Final = 12
_LINES: Final = 2


def picture_grid(
    pictures: Pictures,
    captions: Sequence[str] = (),
    *,
    columns: int = 10,
    title: str = "",
    subtitle: str = "",
    cell: int = 96,
) -> Image.Image:
    """All pictures, row by row, each with its caption below.

    Args:
        pictures: Values 0 to 255.
        captions: One for each picture, or none at all.
        columns: Pictures in a row, at most.
        title: Above everything; left out when empty.
        subtitle: Smaller, below the title; left out when empty.
        cell: Side of each drawn picture in pixels.

    Raises:
        SurgeryError: when there are no pictures, or another number of captions.
    """
    if not len(pictures) or (captions and len(captions) != len(pictures)) or columns < 1:
        raise SurgeryError(
            f"{len(pictures)} pictures, {len(captions)} captions and {columns} columns; expected at least "
            "one picture and column, and a caption for each picture or for none. Pass them alike."
        )
    columns = min(columns, len(pictures))
    width = 2 * MARGIN + columns * (cell + _GAP) - _GAP
    strips = titles(title, subtitle, width)
    for start in range(0, len(pictures), columns):
        part = slice(start, start + columns)
        strips.append(_row(pictures[part], captions[part], width, cell))
    return stacked(strips, _GAP)


def _row(pictures: Pictures, captions: Sequence[str], width: int, cell: int) -> Image.Image:
    face = font(11)
    texts = [wrapped(caption, face, cell + _GAP - 4, _LINES) for caption in captions]
    lines = max((len(text) for text in texts), default=0)
    paper, pen = strip(width, cell + (5 + lines * line_height(face) if lines else 2))
    for column, picture in enumerate(pictures):
        left = MARGIN + column * (cell + _GAP)
        paste(paper, picture, left, 1, cell)
        for number, line in enumerate(texts[column] if texts else ()):
            top = cell + 5 + number * line_height(face)
            pen.text((left + cell / 2, top), line, font=face, fill=INK, anchor="ma")
    return paper
