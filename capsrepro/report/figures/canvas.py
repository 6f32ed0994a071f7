"""How figures look and how they become files whose bytes are the same every time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsrepro.errors import CapsreproError
from capsrepro.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
MARGIN = 24
"""Around everything, in pixels of the PNG."""

# Okabe and Ito 2008: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, SKY, RED = "#CC79A7", "#56B4E9", "#D55E00"
FAILURE = "#B00020"
"""For text: plainly red, where the red above could pass for orange."""

_SHADES = ("#7ad151", "#22a884", "#2a788e", "#414487", "#440154")
"""From light to dark (viridis), for what is counted, such as iterations."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "errorbar.capsize": 2,
    "font.family": "DejaVu Sans",  # the one that comes with matplotlib
    "font.size": 8,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.markersize": 4,
    "savefig.dpi": DPI,
    "svg.hashsalt": "capsrepro",  # otherwise the names of clip paths are random
}

UNDATED: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
}
"""By format: leaves out what would make the bytes of equal pictures differ."""

# Of the heading, the first line and the others: points, and pixels from line to line.
_SIZES, _LINES = (9.5, 7.5), (40, 32)


def require_matplotlib() -> Any:
    """The package, which only drawing needs.

    Raises:
        CapsreproError: It is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise CapsreproError(
            "drawing needs matplotlib, which is not installed; run `uv sync --extra figures`."
        ) from error
    return matplotlib


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Our settings in place of the user's: everything is drawn and saved inside.

    Raises:
        CapsreproError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def shades(count: int) -> list[str]:
    """So many colours from light to dark, the last one the darkest."""
    last = len(_SHADES) - 1
    return [_SHADES[last - round(last * n / max(count - 1, 1))] for n in reversed(range(count))]


def new_chart(heading: Sequence[str], width: float, height: float) -> Figure:
    """A figure laid out by matplotlib below its heading.

    Args:
        heading: Lines; the first is larger.
        width: Inches.
        height: Inches, without the heading.
    """
    from matplotlib.figure import Figure

    above = heading_size(heading)[0] / DPI
    figure = Figure(figsize=(width, height + above), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, height / (height + above)))
    add_heading(figure, heading)
    return figure


def heading_size(heading: Sequence[str]) -> tuple[int, int]:
    """Height, and width about, in pixels of the PNG, without margins but with space below."""
    height = _LINES[0] + _LINES[1] * (len(heading) - 1) + MARGIN
    # A letter of this font is little more than half as wide as the font is high.
    widths = [len(line) * _points(n) * 0.58 * DPI / 72 for n, line in enumerate(heading)]
    return height, round(max(widths))


def add_heading(figure: Figure, heading: Sequence[str]) -> None:
    """Write the lines into the upper left corner."""
    width, height = figure.get_size_inches() * DPI
    down = MARGIN - 8
    for n, line in enumerate(heading):
        place = (MARGIN / width, 1 - down / height)
        color = "#555555" if n else "black"
        figure.text(*place, line, fontsize=_points(n), color=color, va="top")
        down += _LINES[min(n, 1)]


def write_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Save as SVG and as PNG, each atomically and neither before both are drawn.

    Raises:
        CapsreproError: The folder cannot be written to.
    """
    contents = {}
    for form in ("svg", "png"):
        contents[form] = io.BytesIO()
        figure.savefig(contents[form], format=form, metadata=UNDATED[form])
    paths = []
    for form, content in contents.items():
        paths.append(folder / f"{name}.{form}")
        write_atomically(paths[-1], partial(_copy, content))
    return paths


def _copy(content: io.BytesIO, file: Any) -> None:
    file.write(content.getvalue())


def _points(line: int) -> float:
    return _SIZES[min(line, 1)]
