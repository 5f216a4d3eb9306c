"""Where concepts live in a model: their scores by block and role, and how far their masks overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from surgery.errors import SurgeryError
from surgery.report.text import CHART_TEXT, FAINT, INK

Cell = tuple[str, str]
"""Block and role."""

_COLOURS: Final = "Blues"
_ACROSS: Final = 3  # maps side by side
_MOST_PIXELS: Final = 60e6  # of the whole picture; more become smaller ones
_BRIGHT: Final = 0.55  # of the largest value, from which on a number is written in white


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptMap:
    """One concept: shares (0 to 1) of its whole score mass, positive and negative, by block and role."""

    name: str
    positive: Mapping[Cell, float]
    negative: Mapping[Cell, float]


def concept_maps(
    maps: Sequence[ConceptMap],
    blocks: Sequence[str],
    roles: Sequence[str],
    overlaps: Sequence[Sequence[float]],
) -> bytes:
    """The maps and, for several concepts, the matrix of overlaps as a PNG; equal numbers give equal bytes.

    Args:
        maps: One for each concept.
        blocks: In the order in which a signal passes them.
        roles: In the order of the columns.
        overlaps: Jaccard index of the masks of each two concepts.

    Raises:
        SurgeryError: when there is nothing to draw.
    """
    if not maps or not blocks or not roles:
        raise SurgeryError(
            "a map of no concept; expected at least one with scores. Pass what was attributed."
        )
    panels = len(maps) + (len(maps) > 1)
    across = min(_ACROSS, panels)
    down = -(-panels // across)
    content = BytesIO()
    with rc_context({**CHART_TEXT, "font.size": 9}):
        columns = max(len(roles), len(maps) if len(maps) > 1 else 0)
        size = (across * max(4.2, 1.6 + 0.62 * columns), down * (1.9 + 0.32 * max(len(blocks), len(maps))))
        dpi = min(150, (_MOST_PIXELS / (size[0] * size[1])) ** 0.5)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.16))
        FigureCanvasAgg(figure)
        axes = list(np.atleast_1d(figure.subplots(down, across)).flat)
        for own, one in zip(axes, maps, strict=False):
            _map(own, one, blocks, roles)
        if len(maps) > 1:
            _matrix(axes[len(maps)], [one.name for one in maps], overlaps)
        for spare in axes[panels:]:
            spare.set_axis_off()
        figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def _map(axes: Axes, one: ConceptMap, blocks: Sequence[str], roles: Sequence[str]) -> None:
    table = np.array([[one.positive.get((block, role), np.nan) for role in roles] for block in blocks])
    _image(axes, table, [role.replace("_", " ") for role in roles], list(blocks))
    makes, hinders = (100 * sum(side.values()) for side in (one.positive, one.negative))
    axes.set_title(f"{one.name}", loc="left", color=INK, weight="bold", pad=16)
    axes.text(
        0,
        1.01,
        f"% of all score mass: {makes:.0f} makes it (below), {hinders:.0f} hinders",
        transform=axes.transAxes,
        color=FAINT,
        va="bottom",
    )


def _matrix(axes: Axes, names: Sequence[str], overlaps: Sequence[Sequence[float]]) -> None:
    _image(axes, np.array(overlaps), list(names), list(names))
    axes.set_title("overlap of masks", loc="left", color=INK, weight="bold", pad=16)
    axes.text(
        0,
        1.01,
        "% of the weights in either that are in both",
        transform=axes.transAxes,
        color=FAINT,
        va="bottom",
    )


def _image(axes: Axes, table: np.ndarray, columns: list[str], rows: list[str]) -> None:
    most = float(np.nanmax(table)) if np.isfinite(table).any() else 1.0
    axes.imshow(table, cmap=_COLOURS, vmin=0, vmax=max(most, 1e-12), aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", color=INK)
    axes.set_yticks(range(len(rows)), rows, color=INK)
    axes.tick_params(length=0)
    for row, column in np.ndindex(*table.shape):
        value = float(table[row, column])
        if np.isfinite(value):
            colour = "white" if value > _BRIGHT * most else INK
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
