"""The contact sheet: rows of pictures before and after, in the same columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageFont

from surgery.errors import SurgeryError, raise_all
from surgery.report.strips import MARGIN, Pictures, paste, stacked, strip, titles
from surgery.report.text import FAINT, INK, RULE, font, line_height, wrapped

_GAP: Final = 6  # between pictures, their hairlines included
_GROUP_GAP: Final = 28  # between before and after
_LABEL_WIDTH: Final = 190
_LABEL_GAP: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        label: The name of the row, such as ``cat → pizza``.
        groups: The pictures of each group (before, after) in the order of the columns, values 0 to 255.
        note: Smaller, below the label, such as the prompt.
    """

    label: str
    groups: tuple[Pictures, ...]
    note: str = ""


def contact_sheet(
    rows: Sequence[SheetRow],
    *,
    groups: Sequence[str] = ("before", "after"),
    columns: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    cell: int = 128,
) -> Image.Image:
    """Rows of labelled pictures, with the same columns once for each group.

    Args:
        rows: At least one; all with as many groups and columns as the first.
        groups: Headings of the groups; a single group may have an empty one.
        columns: Headings of the columns inside each group, such as seeds; left out when there are none.
        title: Above everything; left out when empty.
        subtitle: Smaller, below the title; left out when empty.
        cell: Side of each drawn picture in pixels.

    Raises:
        SurgeryError: when rows and headings do not fit each other; all faults at once.
    """
    raise_all(SurgeryError, _faults(rows, groups, columns))
    layout = _Layout(groups=len(groups), columns=len(rows[0].groups[0]), cell=cell)
    strips = titles(title, subtitle, layout.width)
    if any(groups) or columns:
        strips.append(_headings(layout, groups, columns))
    return stacked([*strips, *(_row(layout, row) for row in rows)], _GAP - 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where pictures stand, in pixels."""

    groups: int
    columns: int
    cell: int

    @property
    def group_width(self) -> int:
        return self.columns * (self.cell + _GAP) - _GAP

    @property
    def width(self) -> int:
        return self.left(self.groups - 1, self.columns) - _GAP + MARGIN

    def left(self, group: int, column: int = 0) -> int:
        start = MARGIN + _LABEL_WIDTH + _LABEL_GAP + group * (self.group_width + _GROUP_GAP)
        return start + column * (self.cell + _GAP)


def _headings(layout: _Layout, groups: Sequence[str], columns: Sequence[str]) -> Image.Image:
    large, small = font(15, bold=True), font(12)
    tall = line_height(large) + 6 if any(groups) else 0
    paper, pen = strip(layout.width, tall + (line_height(small) if columns else 0))
    for group, heading in enumerate(groups):
        left, right = layout.left(group), layout.left(group) + layout.group_width
        for line in wrapped(heading, large, layout.group_width, 1):
            pen.text(((left + right) / 2, 0), line, font=large, fill=INK, anchor="ma")
            pen.line([(left, tall - 5), (right - 1, tall - 5)], fill=RULE, width=1)
        for column, name in enumerate(columns):
            middle = layout.left(group, column) + layout.cell / 2
            for line in wrapped(name, small, layout.cell, 1):
                pen.text((middle, tall), line, font=small, fill=FAINT, anchor="ma")
    return paper


def _row(layout: _Layout, row: SheetRow) -> Image.Image:
    paper, pen = strip(layout.width, layout.cell + 2)
    lines = _label_lines(row, layout.cell)
    top = (layout.cell - sum(line_height(face) for _, face, _ in lines)) / 2
    for text, face, colour in lines:
        pen.text((MARGIN, top), text, font=face, fill=colour)
        top += line_height(face)
    for group, pictures in enumerate(row.groups):
        for column, picture in enumerate(pictures):
            paste(paper, picture, layout.left(group, column), 1, layout.cell)
    return paper


def _label_lines(row: SheetRow, height: int) -> list[tuple[str, ImageFont.FreeTypeFont, str]]:
    """The label and its note, as many lines as fit; the label comes first."""
    large, small = font(15, bold=True), font(12)
    room = height // line_height(large)
    label = wrapped(row.label, large, _LABEL_WIDTH, max(1, min(3, room)))
    room = (height - len(label) * line_height(large)) // line_height(small)
    note = wrapped(row.note, small, _LABEL_WIDTH, min(3, room)) if room > 0 else []
    return [(line, large, INK) for line in label] + [(line, small, FAINT) for line in note]


def _faults(rows: Sequence[SheetRow], groups: Sequence[str], columns: Sequence[str]) -> list[str]:
    if not rows or not groups:
        return ["a sheet without rows or groups; expected at least one of each. Pass some pictures."]
    faults = []
    count = len(columns) or len(rows[0].groups[0] if rows[0].groups else ())
    for row in rows:
        found = [len(pictures) for pictures in row.groups]
        if found != [count] * len(groups) or not count:
            faults.append(
                f"row {row.label!r} has {found} pictures; expected {count} in each of {len(groups)} groups. "
                "Pass as many pictures as columns."
            )
    return faults
