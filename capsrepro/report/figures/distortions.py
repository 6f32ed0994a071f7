"""Accuracy on rotated, moved, scaled, affinely mapped and noisy test images, by model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from capsrepro.metrics import UNDISTORTED
from capsrepro.report.figures.archive import Archive, Wish, budget, find_evaluated, find_sources
from capsrepro.report.figures.curves import (
    BANDS,
    by_model,
    counted,
    curve_of,
    draw_curve,
    styles,
)
from capsrepro.report.figures.panels import add_legend, new_panels, percent_axis
from capsrepro.report.formatting import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTORTED = Wish("distortions", "mnist", ("capsnet-r3-recon", "capsnet-r1-recon", "cnn-baseline"))

_LABELS = {
    "rotation_deg": "rotation, degrees",
    "translation_px": "shift, pixels",
    "scale": "scale",
    "affine_share": "random affine map, share of affNIST's ranges",
    "noise_sd": "Gaussian noise, SD in raw pixels",
}


def draw_distortions(archive: Archive) -> Figure:
    """One panel for each way of distorting images, in it one line for each model.

    Raises:
        NothingToDrawError: There is no record of distortions.
    """
    best = find_sources(archive, DISTORTED)[0].record
    models = by_model(
        archive,
        [
            source
            for source in find_evaluated(archive)
            if (source.record.kind, source.record.protocol) == (best.kind, best.protocol)
        ],
    )
    everything = [source for found in models.values() for source in found]
    images = sorted({source.record.metrics["test_images"] for source in everything})
    heading = [
        f"Accuracy on distorted images: {best.protocol}, {budget(best)}",
        f"{' / '.join(map(plain, images))} test images; along each axis all else is left as it is",
        f"lines: means over seeds; {BANDS}",
    ]
    shown = [name for name in UNDISTORTED if len(sweep(best.curves, name)) > 1]
    figure, panels = new_panels(heading, len(shown), legend=0.6)
    looks = styles(archive, everything)
    for axes, name in zip(panels, shown, strict=True):
        for model, found in models.items():
            curve = curve_of([sweep(source.record.curves, name) for source in found])
            draw_curve(axes, curve, looks[model], counted(model, [len(found)]))
        axes.set_xlabel(_LABELS[name])
        percent_axis(axes, "accuracy, %")
    add_legend(figure, panels)
    return figure


def sweep(curves: Mapping[str, Sequence[float]], name: str) -> list[tuple[float, float]]:
    """Points at which nothing but `name` distorts, with their accuracy in %, rising."""
    others = [other for other in UNDISTORTED if other != name]
    return sorted(
        (curves[name][n], accuracy)
        for n, accuracy in enumerate(curves["distorted_accuracy_pct"])
        if all(curves[other][n] == UNDISTORTED[other] for other in others)
    )
