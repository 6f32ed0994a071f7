"""Error on two digits by how much they overlap, which Sabour et al. 2017 §6 does not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, mean
from typing import TYPE_CHECKING

from capsrepro.records import Record
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import Archive, Wish, budget, find_sources
from capsrepro.report.formatting import percentage, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAPPED = Wish("overlap", "multimnist", ("capsnet-r3-recon", "capsnet-r1-recon", "cnn-baseline"))

_STYLES = (
    (canvas.RED, "o"),
    (canvas.BLUE, "s"),
    (canvas.GREEN, "^"),
    (canvas.ORANGE, "v"),
    (canvas.PURPLE, "D"),
    (canvas.SKY, "P"),
)
_APART = 0.06
"""How far apart models stand, so that their bars do not hide each other."""


def draw_error_by_overlap(archive: Archive) -> Figure:
    """One line for each model of the best protocol, the mean over its seeds.

    Raises:
        NothingToDrawError: There is no record of overlap.
    """
    sources = find_sources(archive, OVERLAPPED)
    best = sources[0].record
    models: dict[str, list[Record]] = {}
    for source in sources:
        if source.record.protocol == best.protocol:
            models.setdefault(source.record.model, []).append(source.record)
    confidence = archive.params.margins.confidence
    figure = canvas.new_chart(
        [
            "Error by overlap of the two digits (both labels must be right), cf. Sabour et al. "
            "2017, §6",
            f"{best.protocol}, {budget(best)}",
            f"means over seeds; bars: {percentage(confidence)} binomial intervals for so many "
            "test composites",
        ],
        7,
        4,
    )
    axes = figure.subplots()
    for number, (model, records) in enumerate(models.items()):
        color, marker = _STYLES[number % len(_STYLES)]
        errors, low, high = error_and_interval(records, confidence)
        shift = _APART * (number - (len(models) - 1) / 2)
        axes.errorbar(
            [place + shift for place in range(len(errors))],
            errors,
            yerr=[
                [error - end for error, end in zip(errors, low, strict=True)],
                [end - error for error, end in zip(errors, high, strict=True)],
            ],
            color=color,
            elinewidth=1,
            marker=marker,
            label=f"{model} (seeds: {', '.join(str(record.seed) for record in records)})",
        )
    names = _group_names(best)
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="share of the smaller digit's ink that lies on the other digit")
    axes.set(ylabel="error, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def error_and_interval(
    records: Sequence[Record], confidence: float
) -> tuple[list[float], list[float], list[float]]:
    """Mean error over the seeds in each group of overlap, and the ends of its interval, in %.

    All seeds are tested on the same composites, so their number does not narrow the interval: it
    says how far the composites alone let the error be known.
    """
    errors = [
        mean(values) for values in zip(*(r.curves["error_pct"] for r in records), strict=True)
    ]
    counts = records[0].curves["composites"]
    ends = [
        wilson_interval(error / 100, count, confidence)
        for error, count in zip(errors, counts, strict=True)
    ]
    return errors, [100 * low for low, _ in ends], [100 * high for _, high in ends]


def wilson_interval(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson 1927: interval of a proportion seen on `n` samples; never beyond 0 and 1.

    Args:
        share: 0 to 1; need not be a whole number of samples, since it may be a mean over seeds.
        n: Samples, at least 1.
        confidence: Coverage, 0 to 1.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Exact where nothing or everything went wrong: rounding must not push an end past the mean.
    return min(centre - half, share), max(centre + half, share)


def _group_names(record: Record) -> list[str]:
    curves = record.curves
    groups = zip(curves["overlap_from"], curves["overlap_to"], curves["composites"], strict=True)
    return [f"{100 * low:g}–{percentage(high)}\nn = {plain(n)}" for low, high, n in groups]
