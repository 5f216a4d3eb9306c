"""The drawings of an audit's page: heat maps of blocks and roles, and curves of singular values."""

import math
from dataclasses import dataclass
from typing import Final

from surgery.report.audit_record import AuditRecord, Spectrum, Total
from surgery.report.numbers import number, percent

SHADES: Final = 9
# The lightest shade stands for this relative change and everything below it, the darkest for 1 and above.
_FAINTEST: Final = 1e-5
_LINE_WIDTH, _LINE_HEIGHT, _DECADES = 200, 72, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One role of one block: a shade from 0 (untouched) to 9, a short text, and a full one."""

    shade: int
    short: str
    full: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """One component: blocks down, roles across; None where a block has no such role."""

    component: str
    roles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat_maps(record: AuditRecord) -> list[HeatMap]:
    """A map for each component that has a changed tensor."""
    maps = []
    loudest = max((cell.norm for cell in record.cells), default=0.0)
    for total in record.totals:
        cells = {(cell.block, cell.role): cell for cell in record.cells if cell.component == total.component}
        if not any(cell.touched for cell in cells.values()):
            continue
        blocks = tuple(dict.fromkeys(block for block, _ in cells))
        changed = {role for (_, role), cell in cells.items() if cell.touched}
        known = {role for _, role in cells}
        # changed roles first: a narrow window shows the first columns alone
        roles = tuple(sorted(known, key=lambda role: (role not in changed, record.roles.index(role))))
        rows = tuple(
            (block, tuple(_cell(cells.get((block, role)), loudest) for role in roles)) for block in blocks
        )
        maps.append(HeatMap(component=total.component, roles=roles, rows=rows))
    return maps


def shade(relative: float) -> int:
    """1 to 9, even steps of the logarithm from 1e-5 to 1."""
    span = -math.log10(_FAINTEST)
    place = (math.log10(max(relative, _FAINTEST)) + span) / span
    return 1 + min(SHADES - 1, int(place * (SHADES - 1) + 0.5))


def spectrum_curve(spectrum: Spectrum) -> tuple[str, float | None]:
    """The points of a line through the values, and the height of what rounding explains.

    In a box of 200 × 72: the values left to right, four decades below the largest from top to bottom.
    """
    top = spectrum.values[0] if spectrum.values else 0.0
    if top <= 0:
        return "", None
    step = _LINE_WIDTH / max(1, len(spectrum.values) - 1)
    points = " ".join(
        f"{index * step:.1f},{_height(value / top):.1f}" for index, value in enumerate(spectrum.values)
    )
    if len(spectrum.values) == 1:  # a single value is a line across
        points = f"0,0 {_LINE_WIDTH},0"
    return points, _height(spectrum.rounding / top) if spectrum.rounding > 0 else None


def _height(share: float) -> float:
    decades = -math.log10(min(1.0, max(share, 10.0**-_DECADES)))
    return decades / _DECADES * _LINE_HEIGHT


def _cell(total: Total | None, loudest: float) -> Cell | None:
    if total is None:
        return None
    if not total.touched:
        return Cell(shade=0, short="·", full=f"none of {total.tensors} tensors changed")
    size = total.relative if total.relative is not None else total.norm / loudest if loudest else 0.0
    short = percent(total.relative) if total.relative is not None else number(total.norm, 2)
    full = (
        f"{total.touched} of {total.tensors} tensors changed, {percent(total.changed / total.elements)} of "
        f"the elements, norm {number(total.norm)}"
    )
    if total.relative is not None:
        full += f", {percent(total.relative)} of the weights' own norm"
    return Cell(shade=shade(size), short=short, full=full)
