"""The curves as one picture: a panel for each metric, a line for each method."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import pairwise
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surgery.record import Score

Found = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Score]]]

_PANELS: Final = (
    ("update", "source2dest", "Source2Dest"),
    ("update", "generalisation_source2dest", "Source2Dest, unseen prompts"),
    ("update", "alias2dest", "Alias2Dest"),
    ("update", "holdout_delta", "Holdout Delta (update)"),
    ("forget", "source_forget", "Source Forget"),
    ("forget", "holdout_delta", "Holdout Delta (forget)"),
)
_COLOURS: Final = {"emcid": "#0969da", "uce": "#bc4c00"}
_TITLES: Final = {"emcid": "EMCID", "uce": "UCE"}
_MARKS: Final = {"emcid": "o", "uce": "D"}


def plot_curves(found: Found) -> bytes:
    """The picture as a PNG file's content."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, metric, title) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        for method in _COLOURS:
            _line(axes, found, kind, metric, method)
        _dress(axes, title, metric, sorted({cell["count"] for cell, _ in found.values()}))
    figure.axes[0].legend(frameon=False, loc="lower left")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _line(axes: Axes, found: Found, kind: str, metric: str, method: str) -> None:
    points = sorted(
        (cell["count"], scores[metric])
        for cell, scores in found.values()
        if (cell["kind"], cell["method"], cell["residual"], cell["mode"]) == (kind, method, "block", "both")
        and metric in scores
    )
    if not points:
        return
    counts, scores = [count for count, _ in points], [score for _, score in points]
    axes.errorbar(
        counts,
        [s.value for s in scores],
        [[s.value - s.low for s in scores], [s.high - s.value for s in scores]],
        fmt=f"{_MARKS[method]}-",
        markerfacecolor="white",  # where the methods agree, both can be seen
        markersize=5 if method == "emcid" else 8,
        zorder=3 if method == "emcid" else 2,
        capsize=3,
        color=_COLOURS[method],
        label=_TITLES[method],
    )


def _dress(axes: Axes, title: str, metric: str, ticks: list[int]) -> None:
    axes.set_xscale("log")
    # a label needs room: on a panel this wide about a fifth of a decade
    near = [later < 1.6 * tick for tick, later in pairwise([*ticks, ticks[-1] * 2])]
    axes.set_xticks(ticks, ["" if close else str(tick) for tick, close in zip(ticks, near, strict=True)])
    axes.minorticks_off()
    axes.set_title(title, loc="left", fontsize=10.5, weight="bold")
    axes.set_xlabel("edited concepts", fontsize=9)
    axes.set_ylim((-1.02, 0.12) if metric == "holdout_delta" else (-0.03, 1.12))
    axes.grid(color="#d0d7de", linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
