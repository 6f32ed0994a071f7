"""Figures 2 and B.2 of Hinton et al. 2018: how far votes lie from each class capsule.

The paper draws the first for distances up to 0.05 and the second up to 60. Where the votes of
another network lie, nobody knows beforehand; so each figure takes, of the windows of the record,
the smallest that holds a given share of all that is assigned in the images it shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.records import Record
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import Archive, Wish, find_sources, read_pictures
from capsrepro.report.figures.mosaic import as_picture
from capsrepro.report.formatting import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUTED_BY_EM = Wish("votes", "smallnorb", ("matcaps-em3", "matcaps-small-em3"))

_RIGHT, _WRONG = ("truck", "human"), ("plane",)
"""Classes of the images in the paper, routed right and routed wrong."""
_ZOOMED, _WHOLE = 0.5, 0.999
"""Share of the assignment probability that the windows of the two figures hold."""
_LEAST = 1e-2
"""Where the logarithmic axis begins: a hundredth of a vote."""
_CELL = 1.05
"""Side of a panel in inches."""

Arrays = Mapping[str, NDArray[Any]]


def draw_votes(archive: Archive) -> Figure:
    """Fig. 2: near votes, on one scale for all panels.

    Raises:
        NothingToDrawError: There is no record of votes.
        CapsreproError: Its arrays are missing or damaged.
    """
    figure, panels = _draw(archive, _ZOOMED, "Fig. 2", 0.05)
    highest = max(axes.get_ylim()[1] for axes in panels.flat)
    for axes in panels.flat:
        axes.set_ylim(0, 1.12 * highest)  # room for the numbers
    for axes in panels[:, 1:].flat:
        axes.tick_params(labelleft=False)
    return figure


def draw_all_votes(archive: Archive) -> Figure:
    """Fig. B.2: all votes, counted logarithmically, each panel on a scale of its own.

    Raises:
        NothingToDrawError: There is no record of votes.
        CapsreproError: Its arrays are missing or damaged.
    """
    figure, panels = _draw(archive, _WHOLE, "Fig. B.2", 60)
    for axes in panels.flat:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=_LEAST, top=max(axes.get_ylim()[1], 10 * _LEAST))
    return figure


def shown_images(arrays: Arrays, names: Sequence[str]) -> list[int]:
    """Two images that are classified right and one that is not; fewer where there are fewer.

    Args:
        arrays: What `capsrepro votes` left.
        names: Of the classes: those of the paper's images come first.
    """
    hits = arrays["labels"] == arrays["predictions"]
    shown: list[int] = []
    for items, wanted in ((np.flatnonzero(hits), _RIGHT), (np.flatnonzero(~hits), _WRONG)):
        ranks = {name: rank for rank, name in enumerate(wanted)}
        classes = [names[int(label)] for label in arrays["labels"][items]]
        order = sorted(range(len(items)), key=lambda n: ranks.get(classes[n], len(wanted)))
        shown += [int(items[n]) for n in order[: len(wanted)]]
    return shown


def window_that_holds(
    histograms: NDArray[Any], windows: Sequence[float], share: float
) -> tuple[int, float]:
    """The smallest window with this share of everything, or the largest if none has it.

    Args:
        histograms: Shape (…, windows, bins + 1).
        windows: Their ends.
        share: 0 to 1.

    Returns:
        Which window, and the share it has.
    """
    sums = histograms.astype(np.float64).reshape(-1, *histograms.shape[-2:]).sum(0)
    held = (sums[:, :-1].sum(1) / sums.sum(1)).tolist()
    by_size = sorted(range(len(windows)), key=lambda n: windows[n])
    window = next((n for n in by_size if held[n] >= share), by_size[-1])
    return window, held[window]


def class_names(archive: Archive, record: Record, count: int) -> list[str]:
    """As the manifest of the data set has them; numbers where there is none that can be read."""
    path = archive.results / "datasets" / f"{record.data.name}.json"
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["classes"]]
    except (OSError, ValueError, KeyError):
        return [str(number) for number in range(count)]


def _draw(
    archive: Archive, share: float, locator: str, paper: float
) -> tuple[Figure, NDArray[Any]]:
    """The figure, and its panels of votes: a row for each image and a column for each class."""
    source = find_sources(archive, ROUTED_BY_EM)[0]
    arrays = read_pictures(source)
    windows = source.record.spec["evaluation"]["windows"]
    names = class_names(archive, source.record, arrays["activations"].shape[2])
    items = shown_images(arrays, names)
    window, held = window_that_holds(arrays["histograms"][items], windows, share)
    heading = [
        f"Distances of votes to the class capsules, after Hinton et al. 2018, {locator}",
        source.told(),
        f"weighted by assignment probability; to {plain(windows[window])} (paper: {plain(paper)}), "
        f"{_percent(1 - held)} % lie further",
        "grey: true class; numbers: % of all votes, by iteration",
    ]
    size = (_CELL * (len(names) + 1.5), _CELL * len(items) + 0.6)
    figure = canvas.new_chart(heading, *size)
    grid = figure.subplots(len(items), len(names) + 1, squeeze=False)
    for row, item in zip(grid, items, strict=True):
        _draw_image(row[0], arrays, item, names)
        _draw_classes(row[1:], arrays, item, window, windows[window])
    for axes, name in zip(grid[0, 1:], names, strict=True):
        axes.set_title(name)
    figure.legend(*grid[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=9)
    return figure, grid[:, 1:]


def _draw_image(axes: Axes, arrays: Arrays, item: int, names: Sequence[str]) -> None:
    """The picture, and what it is taken for."""
    axes.imshow(as_picture(arrays["images"][item]), cmap="gray", interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    label, prediction = (names[int(arrays[key][item])] for key in ("labels", "predictions"))
    wrong = label != prediction
    axes.set_xlabel(f"{label}, taken for {prediction}" if wrong else label, fontsize=6.5)
    if wrong:
        axes.xaxis.label.set_color(canvas.FAILURE)


def _draw_classes(
    panels: Sequence[Axes], arrays: Arrays, item: int, window: int, end: float
) -> None:
    """One panel for each class, in it one histogram for each iteration."""
    counts_TJH = arrays["histograms"][item, :, :, window].astype(np.float64)
    shares_TJ = counts_TJH.sum(2) / counts_TJH.sum((1, 2))[:, None]
    iterations, _, bins = counts_TJH.shape
    edges = np.linspace(0, end, bins)
    colours = canvas.shades(iterations)
    for number, axes in enumerate(panels):
        for iteration, colour in enumerate(colours):
            axes.stairs(
                counts_TJH[iteration, number, :-1],
                edges,
                color=colour,
                linewidth=0.9,
                label=f"iteration {iteration + 1}",
            )
        told = " → ".join(_percent(share) for share in shares_TJ[:, number])
        axes.text(0.97, 0.96, told, transform=axes.transAxes, fontsize=5, ha="right", va="top")
        axes.set_xlim(0, end)
        axes.set_xticks([0, end], ["0", plain(end)])
        axes.tick_params(labelsize=5.5, length=2, pad=1)
    panels[int(arrays["labels"][item])].set_facecolor("#ececec")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share > 0.0995 or share == 0 else f"{100 * share:.1f}"
