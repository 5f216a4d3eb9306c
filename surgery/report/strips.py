"""Pictures put together from strips of full width, one below the other."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from surgery.report.text import FAINT, INK, PAPER, RULE, font, line_height, wrapped

Pictures = UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]

MARGIN: Final = 28


def strip(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Empty paper and the pen to write on it."""
    paper = Image.new("RGB", (width, height), PAPER)
    return paper, ImageDraw.Draw(paper)


def stacked(strips: Sequence[Image.Image], gap: int) -> Image.Image:
    """The strips below each other, with margins at the top and the bottom."""
    height = sum(part.height for part in strips) + gap * (len(strips) - 1) + 2 * MARGIN
    paper, _ = strip(strips[0].width, height)
    top = MARGIN
    for part in strips:
        paper.paste(part, (0, top))
        top += part.height + gap
    return paper


def png(picture: Image.Image) -> bytes:
    """The picture as the content of a PNG file; the same pixels give the same bytes."""
    content = BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return content.getvalue()


def titles(title: str, subtitle: str, width: int) -> list[Image.Image]:
    """The title's and the subtitle's lines as one strip; nothing when both are empty."""
    lines = [
        (line, face, colour)
        for text, face, colour in ((title, font(20, bold=True), INK), (subtitle, font(13), FAINT))
        for line in wrapped(text, face, width - 2 * MARGIN, 3)
    ]
    if not lines:
        return []
    paper, pen = strip(width, sum(line_height(face) for _, face, _ in lines) + 14)
    top = 0
    for line, face, colour in lines:
        pen.text((MARGIN, top), line, font=face, fill=colour)
        top += line_height(face)
    return [paper]


def paste(paper: Image.Image, picture: np.ndarray[Any, Any], left: int, top: int, cell: int) -> None:
    """Put a picture into the middle of its cell, its longer side filling it, with a hairline around it."""
    image = Image.fromarray(picture)
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    corner = left + (cell - image.width) // 2, top + (cell - image.height) // 2
    paper.paste(image, corner)
    # a white picture on white paper would have no edge
    edge = (corner[0] - 1, corner[1] - 1, corner[0] + image.width, corner[1] + image.height)
    ImageDraw.Draw(paper).rectangle(edge, outline=RULE)
