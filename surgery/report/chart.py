"""Shares before and after as a chart with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from surgery.errors import SurgeryError
from surgery.record import Score
from surgery.report.text import CHART_TEXT, FAINT, INK, RULE

_BEFORE: Final = "#9aa4ae"
_AFTER: Final = "#0969da"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareBar:
    """One line of the chart: a share (0 to 1) after an edit, and before where it was measured."""

    label: str
    after: Score
    before: Score | None = None


def share_chart(bars: Sequence[ShareBar], *, title: str = "", kind: Literal["svg", "png"] = "svg") -> bytes:
    """The chart as the content of a file; the same shares give the same bytes.

    Raises:
        SurgeryError: when there is nothing to draw.
    """
    if not bars:
        raise SurgeryError("a chart of no shares; expected at least one. Pass what was measured.")
    content = BytesIO()
    with rc_context(dict(CHART_TEXT)):
        padding = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14)
        figure = Figure(figsize=(7.2, 1.2 + 0.5 * len(bars)), layout=padding)
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), bars, title)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()


def _draw(axes: Axes, bars: Sequence[ShareBar], title: str) -> None:
    for row, bar in enumerate(bars):
        if bar.before is not None:
            _point(axes, bar.before, row - 0.13, _BEFORE)
        _point(axes, bar.after, row + 0.13, _AFTER)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], color=INK)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("share of pictures in %, with 95 % interval", color=FAINT)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    if any(bar.before is not None for bar in bars):
        keys = [Line2D([], [], color=colour, marker="o", linewidth=2.2) for colour in (_BEFORE, _AFTER)]
        axes.legend(
            keys,
            ["before", "after"],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
            labelcolor=INK,
        )
    if title:
        axes.set_title(title, loc="left", color=INK, weight="bold", pad=30)


def _point(axes: Axes, score: Score, height: float, colour: str) -> None:
    value, low, high = (100 * number for number in (score.value, score.low, score.high))
    axes.plot([low, high], [height, height], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([value], [height], "o", color=colour, markersize=6.5)
