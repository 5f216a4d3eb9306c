"""An audit as plain text for a terminal: the summary, the claims, the components, the strongest changes."""

from collections.abc import Iterator, Sequence
from typing import Final

from surgery.errors import printable
from surgery.report.audit_record import AuditRecord, TensorRow
from surgery.report.numbers import count, number, percent

_TENSORS: Final = 20
_WORDS: Final = 60


def audit_text(record: AuditRecord) -> str:
    """The text; long lists are cut, and it says so (the JSON and the page have everything)."""
    return printable("\n".join(_lines(record)))


def _lines(record: AuditRecord) -> Iterator[str]:
    yield record.summary
    for finding in record.findings:
        yield f"{finding.severity}: {finding.subject}: {finding.message}"
    for claim in record.claims:
        yield f"\n{claim.sure}: {claim.statement} ({claim.subject})"
        yield from (f"  {fact}" for fact in claim.evidence)
    yield ""
    yield from _aligned(
        [("component", "changed", "of", "weights", "share", "‖ΔW‖/‖W‖")]
        + [
            (
                total.component,
                count(total.touched),
                count(total.tensors),
                count(total.changed),
                percent(total.changed / total.elements if total.elements else 0.0),
                percent(total.relative),
            )
            for total in record.totals
        ]
    )
    yield from _tensor_lines([row for row in record.tensors if row.state != "same"])
    yield from _word_lines(record)


def _tensor_lines(rows: Sequence[TensorRow]) -> Iterator[str]:
    if not rows:
        return
    strongest = sorted(rows, key=lambda row: -(row.relative if row.relative is not None else row.norm))
    yield ""
    yield from _aligned(
        [("tensor", "state", "changed", "where", "‖ΔW‖/‖W‖", "largest", "rank")]
        + [
            (
                row.name,
                row.state,
                percent(row.changed / row.elements if row.elements else 0.0),
                row.structure,
                percent(row.relative),
                number(row.largest),
                str(row.spectrum.rank) if row.spectrum else "–",
            )
            for row in strongest[:_TENSORS]
        ]
    )
    if len(rows) > _TENSORS:
        yield f"and {len(rows) - _TENSORS} more tensors; --json and --html have them all"


def _word_lines(record: AuditRecord) -> Iterator[str]:
    words = record.words
    if words is None:
        return
    yield f"\n{words.statement}"
    if words.left_out:
        yield f"{len(words.left_out)} phrases could not be looked at, the first: {words.left_out[0]}"
    shown = [row for row in words.rows if row.touched][:_WORDS]
    if shown:
        yield from _aligned(
            [("phrase", "strength", "deviations")]
            + [(row.phrase, number(row.strength), number(row.deviations)) for row in shown]
        )
    if len(words.touched) > len(shown):
        yield f"and {len(words.touched) - len(shown)} more"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
