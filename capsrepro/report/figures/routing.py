"""Figure A.1 of Sabour et al. 2017: how much routing still changes at each iteration.

The paper plots an "average change of each routing logit" without saying more, and its curves fall
faster than Procedure 1 lets a logit's change fall. So three changes are drawn, each against the
published values: of the logit, of the agreement û·v, and of the coupling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from capsrepro.claims import ValueClaim
from capsrepro.records import read_history
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import Archive, Source, Wish, find_sources
from capsrepro.report.figures.published import claims_read_from, overlay_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUTED = Wish("routing", "mnist", ("capsnet-r10", "capsnet-r3-recon", "capsnet-r3"))

CHANGES = {
    "logit_change": ("logit b", canvas.BLUE, "o"),
    "agreement_change": ("agreement û·v", canvas.RED, "s"),
    "coupling_change": ("coupling c", canvas.GREEN, "^"),
}
"""Name in records: what is said to change, its colour and its mark."""

_COLOURS = {2: "#440154", 3: "#414487", 5: "#2a788e", 7: "#22a884", 10: "#7ad151"}
"""The iterations that the paper plots, from dark to light (viridis)."""

History = Sequence[Mapping[str, float]]


def draw_routing(archive: Archive) -> Figure:
    """Three panels (a) over the epochs, if the run's history tells, and one (b) after training.

    Raises:
        NothingToDrawError: There is no record of routing.
        CapsreproError: The history of the run is missing or damaged.
    """
    source, history = _best_told(find_sources(archive, ROUTED))
    heading = [
        "What routing still changes at each iteration, after Sabour et al. 2017, Fig. A.1",
        source.told(),
        "published: digitised, with the error of reading; the paper does not say what was averaged",
    ]
    if not probed_iterations(history):
        figure = canvas.new_chart([*heading, "(a): not in this run's history"], 6, 4)
        _draw_end(figure.subplots(), source.record.curves)
        return figure
    figure = canvas.new_chart(heading, 9, 7)
    panels = figure.subplots(2, 2)
    for axes, change in zip(panels.flat, CHANGES, strict=False):
        _draw_training(axes, history, change)
    # Only equal axes show which of the three is of the published size.
    low = min(axes.get_ylim()[0] for axes in panels.flat[:3])
    high = max(axes.get_ylim()[1] for axes in panels.flat[:3])
    for axes in panels.flat[:3]:
        axes.set_ylim(low, high)
    panels.flat[0].legend()
    _draw_end(panels.flat[3], source.record.curves)
    return figure


def _best_told(sources: Sequence[Source]) -> tuple[Source, History]:
    """Of the best model's seeds the first whose history was probed, or the first of all."""
    first = sources[0].trained
    seeds = [
        s for s in sources if (s.trained.protocol, s.trained.model) == (first.protocol, first.model)
    ]
    told = [(source, read_history(source.folder, source.trained)) for source in seeds]
    return next((found for found in told if probed_iterations(found[1])), told[0])


def probed_iterations(history: History) -> list[int]:
    """Of the iterations that the paper plots, those whose logits the history tells of."""
    keys = {key for entry in history for key in entry}
    found = [re.fullmatch(r"logit_change_(\d+)", key) for key in keys]
    told = {int(match[1]) for match in found if match}
    return [iteration for iteration in _COLOURS if iteration in told]


def _draw_training(axes: Axes, history: History, change: str) -> None:
    for iteration in probed_iterations(history):
        key = f"{change}_{iteration}"
        entries = [entry for entry in history if key in entry]
        axes.plot(
            [entry["epoch"] for entry in entries],
            [entry[key] for entry in entries],
            color=_COLOURS[iteration],
            marker=".",
            label=f"iteration {iteration}",
        )
    published = claims_read_from("Fig. A.1 (a)")
    for iteration in sorted({int(claim.condition["iteration"]) for claim in published}):
        claims = [c for c in published if c.condition["iteration"] == iteration]
        spans = [epochs_of(claim, published) for claim in claims]
        overlay_points(
            axes,
            claims,
            [(first + last) / 2 for first, last in spans],
            f"published, iteration {iteration}",
            _COLOURS[iteration],
            [(last - first) / 2 for first, last in spans],
        )
    axes.set(xscale="log", yscale="log", xlabel="epoch")
    axes.set_ylabel(f"mean change of the {CHANGES[change][0]}")
    axes.set_title(f"(a) during training: {CHANGES[change][0]}")


def epochs_of(claim: ValueClaim, published: Sequence[ValueClaim]) -> tuple[float, float]:
    """First and last epoch that a value of panel (a) is of.

    Some were read at the start or the end of a curve: that is epoch 1, and the end of the longest
    span among all.
    """
    condition = claim.condition
    if "epoch_from" in condition:
        return float(condition["epoch_from"]), float(condition["epoch_to"])
    if "epoch" in condition:
        return float(condition["epoch"]), float(condition["epoch"])
    last = max(float(c.condition["epoch_to"]) for c in published if "epoch_to" in c.condition)
    epoch = 1.0 if condition["phase"] == "start" else last
    return epoch, epoch


def _draw_end(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    """Panel (b). At iteration 1 there is nothing before to have changed from: it starts at 2."""
    for change, (what, color, marker) in CHANGES.items():
        points = zip(curves["iteration"], curves[change], strict=True)
        later = [(iteration, value) for iteration, value in points if iteration > 1]
        axes.plot(*zip(*later, strict=True), color=color, marker=marker, label=what)
    claims = claims_read_from("Fig. A.1 (b)")
    places = [float(claim.condition["iteration"]) for claim in claims]
    overlay_points(axes, claims, places, "published")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_xticks(range(2, int(max(*curves["iteration"], *places)) + 1))
    axes.set(xlabel="routing iteration", ylabel="mean change")
    axes.set_title("(b) after training")
    axes.legend()
