"""How decided EM routing becomes during training: the entropy of its assignments.

Hinton et al. 2018 have no such figure. A child that shares itself equally among n parents has the
entropy ln n, the most there can be: a layer that stays there routes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from capsrepro.config import requested_runs
from capsrepro.records import read_history
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import (
    Archive,
    NothingToDrawError,
    Source,
    Wish,
    cheapest,
    find_trained,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINED = Wish("train", "smallnorb", ("matcaps-em3", "matcaps-small-em3"))

_FAMILY = "matrix-capsules"
_KEY = re.compile(r"routing_entropy_nat_(?P<layer>\w+)_(?P<iteration>\d+)")

History = Sequence[Mapping[str, float]]


def draw_entropy(archive: Archive) -> Figure:
    """One panel for each layer, in it one line for each iteration.

    Raises:
        NothingToDrawError: No history tells of the entropy.
        CapsreproError: The history of a run is missing or damaged.
    """
    source, history = _find(archive)
    layers = layers_of(history)
    heading = [
        "Entropy of the routing assignments during training, cf. Hinton et al. 2018, Procedure 1",
        source.told(),
        "of how a child shares itself among the parents that see it; mean over the children",
    ]
    figure = canvas.new_chart(heading, max(3 * len(layers), 6), 3)
    (panels,) = figure.subplots(1, len(layers), squeeze=False)
    for axes, (layer, iterations) in zip(panels, layers.items(), strict=True):
        _draw_layer(axes, history, layer, iterations)
    panels[0].set_ylabel("entropy, nat")
    panels[0].legend()
    return figure


def layers_of(history: History) -> dict[str, list[int]]:
    """The layers a history tells of, in its order, and the iterations of each."""
    layers: dict[str, list[int]] = {}
    for key in dict.fromkeys(key for entry in history for key in entry):
        if match := _KEY.fullmatch(key):
            layers.setdefault(match["layer"], []).append(int(match["iteration"]))
    return {layer: sorted(iterations) for layer, iterations in layers.items()}


def _find(archive: Archive) -> tuple[Source, History]:
    """The best run whose history tells of the entropy."""
    for source in find_trained(archive, TRAINED):
        if source.trained.spec["model"].get("family") == _FAMILY:
            history = read_history(source.folder, source.trained)
            if layers_of(history):
                return source, history
    raise NothingToDrawError(_how_to_get(archive))


def _how_to_get(archive: Archive) -> str:
    if archive.run:
        return (
            f"no history of {archive.run} tells of the entropy of EM routing; name a finished run "
            "of matrix capsules."
        )
    done = {record.run for record in archive.finished()}
    wanted = [
        spec
        for spec in requested_runs(archive.params)
        if spec.model.family == _FAMILY and spec.name not in done
    ]
    none = "no history tells of the entropy of EM routing"
    if not wanted:
        return f"{none}; ask for a run of matrix capsules in params.yaml and train it."
    return f"{none}; run `capsrepro run {cheapest(wanted, TRAINED, done)}`."


def _draw_layer(axes: Axes, history: History, layer: str, iterations: Sequence[int]) -> None:
    for iteration, color in zip(iterations, canvas.shades(len(iterations)), strict=True):
        key = f"routing_entropy_nat_{layer}_{iteration}"
        entries = [entry for entry in history if key in entry]
        axes.plot(
            [entry["epoch"] for entry in entries],
            [entry[key] for entry in entries],
            color=color,
            marker=".",
            label=f"iteration {iteration}",
        )
    axes.set(xlabel="epoch", title=layer)
    axes.set_ylim(bottom=0)
