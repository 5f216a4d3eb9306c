"""A drawing of probes: drift, energy and alignment over the timesteps, a line for each phrase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, Literal

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from surgery.errors import SurgeryError
from surgery.report.text import CHART_TEXT, FAINT, INK, RULE

_PANELS: Final = {
    "drift": ("Drift without words", "‖e₀' - e₀‖² / ‖e₀‖²", 0.0),
    "energy": ("Energy of the concept", "‖s'‖ / ‖s‖", 1.0),
    "alignment": ("Alignment of the concept", "cos(s', s)", 1.0),
}
_COLOURS: Final = ("#0969da", "#bf3989", "#1a7f37", "#bc4c00", "#8250df", "#57606a", "#9a6700", "#0550ae")
_MOST: Final = len(_COLOURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLine:
    """The curves of one phrase: by name a number for each of the timesteps."""

    label: str
    timesteps: tuple[int, ...]
    curves: Mapping[str, tuple[float, ...]]


def probe_chart(lines: Sequence[ProbeLine], kind: Literal["svg", "png"] = "png") -> bytes:
    """The chart as the content of a file; the same lines give the same bytes. Eight phrases, at most.

    Raises:
        SurgeryError: when there is nothing to draw.
    """
    if not lines:
        raise SurgeryError("a chart of no probes; expected at least one. Pass what was measured.")
    content = BytesIO()
    with rc_context(dict(CHART_TEXT)):
        figure = Figure(figsize=(11, 3.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        FigureCanvasAgg(figure)
        for axes, name in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            _draw(axes, name, lines[:_MOST])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        left_out = len(lines) - _MOST
        title = f"and {left_out} more" if left_out > 0 else None
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, title=title
        )
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()


def _draw(axes: Any, name: str, lines: Sequence[ProbeLine]) -> None:
    title, unit, untouched = _PANELS[name]
    axes.axhline(untouched, color=RULE, linewidth=1.4)
    for colour, line in zip(_COLOURS, lines, strict=False):
        axes.plot(line.timesteps, line.curves[name], "o-", color=colour, markersize=3.5, label=line.label)
    axes.set_title(title, loc="left", color=INK, weight="bold", fontsize=10)
    axes.set_xlabel("timestep (clean to noisy)", color=FAINT)
    axes.set_ylabel(unit, color=FAINT)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(*_range([value for line in lines for value in line.curves[name]], untouched))
    for side in axes.spines.values():
        side.set_visible(False)


def _range(values: Sequence[float], untouched: float) -> tuple[float, float]:
    low, high = min(*values, untouched), max(*values, untouched)
    room = 0.08 * max(high - low, 1e-3)
    return low - room, high + room
