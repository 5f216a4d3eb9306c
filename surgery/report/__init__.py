"""Pictures for people: contact sheets, grids and charts, made from plain data."""

from surgery.report.chart import ShareBar, share_chart
from surgery.report.grid import picture_grid
from surgery.report.sheet import SheetRow, contact_sheet
from surgery.report.strips import png

__all__ = ["ShareBar", "SheetRow", "contact_sheet", "picture_grid", "png", "share_chart"]
