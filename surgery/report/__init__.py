"""What people look at: contact sheets, charts and pages, made from plain data."""

from typing import TYPE_CHECKING

from surgery.lazy import lazy

if TYPE_CHECKING:
    from surgery.report.audit_html import audit_page as audit_page
    from surgery.report.audit_plain import audit_text as audit_text
    from surgery.report.audit_record import AuditRecord as AuditRecord
    from surgery.report.chart import ShareBar as ShareBar
    from surgery.report.chart import share_chart as share_chart
    from surgery.report.probe_drawing import ProbeLine as ProbeLine
    from surgery.report.probe_drawing import probe_chart as probe_chart
    from surgery.report.sheet import SheetRow as SheetRow
    from surgery.report.sheet import contact_sheet as contact_sheet
    from surgery.report.strips import png as png

_HOME = {
    "AuditRecord": "audit_record",
    "ProbeLine": "probe_drawing",
    "ShareBar": "chart",
    "SheetRow": "sheet",
    "audit_page": "audit_html",
    "audit_text": "audit_plain",
    "contact_sheet": "sheet",
    "png": "strips",
    "probe_chart": "probe_drawing",
    "share_chart": "chart",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - names of the lazy table

__getattr__ = lazy(__name__, _HOME)  # what draws no picture needs neither matplotlib nor Pillow
