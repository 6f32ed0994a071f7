"""What a protocol is tested by: a column, an interval and a resolution for each of its metrics.

Most protocols are tested by the error on their test set. Those that name others in `measured` of
params.yaml (accuracy on affNIST, error on novel views) show all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capsrepro.metrics import stem_of
from capsrepro.report.formatting import (
    heading,
    mean_and_sd,
    percentage,
    plain,
    points,
    spread,
    summary_values,
    title_of,
)
from capsrepro.report.rendering import Cell, Column
from capsrepro.report.statistics import binomial_standard_error, summarise
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Protocol


def headline_metrics(groups: Sequence[Group], protocol: Protocol | None) -> tuple[str, ...]:
    """Which metrics the columns show, in the order in which they are measured.

    Args:
        groups: The rows of one table.
        protocol: What params.yaml asks of these rows; None when it no longer asks for them, so
            that only what was found can tell.
    """
    asked = list(protocol.measured.values()) if protocol else []
    tested = (metric for group in groups for metric in _tested(group))
    return tuple(dict.fromkeys([*asked, *tested])) or ("test_error_pct",)


def headline_columns(metrics: Sequence[str], confidence: float) -> Iterator[Column]:
    """Three columns for each metric: its mean, the interval, and what the test set resolves."""
    for metric in metrics:
        of = f"{metric}_" if len(metrics) > 1 else ""
        yield Column(metric, f"{heading(metric)} ± SD", number=True)
        yield Column(f"{of}interval", f"{percentage(confidence)} interval", number=True)
        yield Column(f"{of}resolution_pp", "resolution, pp", number=True)


def headline_cells(
    group: Group, metrics: Sequence[str], confidence: float
) -> Iterator[Cell | None]:
    """The cells below `headline_columns`; None where there is nothing to show."""
    for metric in metrics:
        values = list(group.values(metric).values())
        yield from _cells(metric, values, _images(group, metric), confidence)


def resolution_note(groups: Sequence[Group], metrics: Sequence[str]) -> Iterator[str]:
    """What the column of resolutions means, and on how many images it rests."""
    told = []
    for metric in metrics:
        sizes = sorted({size for group in groups if (size := _images(group, metric))})
        if sizes:
            told.append(f"of the {title_of(metric)} on {' or '.join(map(plain, sizes))} images")
    if told:
        yield (
            f"Resolution is the binomial standard error {' and '.join(told)}: what the test set, "
            "not the seeds, leaves open."
        )


def _tested(group: Group) -> Iterator[str]:
    """The shares of images that a run was tested by: each has its number of images beside it."""
    measured = [m.metric for m in group.measurements if not m.setting]
    for metric in measured:
        error = metric.replace("_accuracy_pct", "_error_pct")
        said_already = error != metric and error in measured
        if _counted_by(metric) in measured and not said_already:
            yield metric


def _counted_by(metric: str) -> str:
    """The name of its number of images: test_images for test_error_pct and test_accuracy_pct."""
    return stem_of(metric) + "_images"


def _images(group: Group, metric: str) -> int | None:
    """On how many images it was measured, when the records say so and agree."""
    counts = {int(count) for count in group.values(_counted_by(metric)).values()}
    return counts.pop() if len(counts) == 1 else None


def _cells(
    metric: str, values: Sequence[float], images: int | None, confidence: float
) -> tuple[Cell | None, Cell | None, Cell | None]:
    if not values:
        return None, None, None
    found = summarise(values, confidence)
    told = summary_values(found)
    ends = {"low": told.pop("low"), "high": told.pop("high")}
    interval = resolution = None
    if found.interval is not None:
        low, high = (spread(metric, end) for end in found.interval)
        interval = Cell(f"{low} to {high}", ends)
    if images is not None:
        se = 100 * binomial_standard_error(found.mean / 100, images)
        resolution = Cell(points(se), {"se": se, "test_images": images})
    return Cell(mean_and_sd(metric, found), told), interval, resolution
