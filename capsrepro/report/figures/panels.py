"""Several panels side by side with one legend, and the axes that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from capsrepro.records import Record
from capsrepro.report.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (3.1, 2.5)
"""Of a panel, in inches."""
_LEAST_WIDTH = 6.5
"""For the heading, in inches."""


def new_panels(heading: Sequence[str], count: int, legend: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, at most three side by side.

    Args:
        heading: Lines; the first is larger.
        count: At least 1.
        legend: Inches below for what `add_legend` writes, where no cell stays free for it.

    Returns:
        The figure and its panels; cells that stay free are invisible axes behind them.
    """
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    below = 0.0 if rows * columns > count else legend
    width = max(columns * _SIZE[0], _LEAST_WIDTH)
    figure = canvas.new_chart(heading, width, rows * _SIZE[1] + below)
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for free in cells[count:]:
        free.axis("off")
    return figure, cells[:count]


def add_legend(figure: Figure, panels: Sequence[Axes], columns: int = 3) -> None:
    """One legend for all panels, in a free cell or below, with every label once."""
    handles = {
        str(line.get_label()): line
        for axes in reversed(panels)
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    ordered = [line for axes in panels for line in axes.get_lines()]
    shown = [line for line in ordered if handles.get(str(line.get_label())) is line]
    if len(figure.axes) > len(panels):
        figure.axes[len(panels)].legend(handles=shown, loc="center left")
    else:
        figure.legend(handles=shown, loc="outside lower center", ncols=columns)


def percent_axis(axes: Axes, label: str) -> None:
    """From 0 to 100 %, with room for the marks at both ends."""
    axes.set(ylim=(-2, 102), yticks=range(0, 101, 20), ylabel=label)


def draw_chance(axes: Axes, records: Sequence[Record]) -> None:
    """A line where guessing is right, for the number of classes that the records tell of."""
    for classes in sorted({r.metrics["classes"] for r in records if "classes" in r.metrics}):
        label = f"chance, {classes:g} classes"
        axes.axhline(100 / classes, color="#888888", linewidth=0.9, linestyle="-.", label=label)
