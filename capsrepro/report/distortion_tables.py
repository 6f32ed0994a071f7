"""Accuracy on distorted images: one row a distortion, one column a model.

Apart from the attacks, because every distortion has values of its own where those share their ε.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from capsrepro.metrics import UNDISTORTED
from capsrepro.report.evaluation_tables import common_notes, model_columns
from capsrepro.report.formatting import mean_sd_and_n, plain, summary_values
from capsrepro.report.measurements import Fact, Measurement
from capsrepro.report.rendering import Cell, Column, Table
from capsrepro.report.statistics import summarise
from capsrepro.report.summaries import Group
from capsrepro.report.tables import NOTHING
from capsrepro.schema.params import Params

_METRIC = "distorted_accuracy_pct"

_DISTORTIONS = {
    "rotation_deg": "rotation, °",
    "translation_px": "shift, pixels",
    "scale": "scale",
    "affine_share": "affine map, share of affNIST's ranges",
    "noise_sd": "Gaussian noise, standard deviation",
}
"""Titles, by what a point is called."""

_TEST_SETS = {
    "affnist_accuracy_pct": "affNIST's test set",
    "expanded_mnist_accuracy_pct": "test digits moved over 40×40 pixels",
}
"""What some protocols are tested on after training (DR17 §5.2): distorted once and for all."""

_Point = tuple[tuple[str, float], ...]
"""What is done to the images; empty when nothing is."""


def distortion_tables(protocol: str, groups: Sequence[Group], params: Params) -> list[Table]:
    """One table per version of a protocol, the present one first; empty without distortions."""
    versions: dict[str, list[tuple[Group, Mapping[_Point, Measurement]]]] = {}
    for group in groups:
        found = {_done(one.point): one for one in group.measurements if one.metric == _METRIC}
        if group.protocol == protocol and found:
            versions.setdefault(group.version, []).append((group, found))
    return [_table(measured, params) for measured in versions.values()]


def _done(point: Mapping[str, Fact]) -> _Point:
    """What differs from the image left alone."""
    return tuple(
        (name, float(point[name]))
        for name, nothing in UNDISTORTED.items()
        if name in point and point[name] != nothing
    )


def _table(measured: Sequence[tuple[Group, Mapping[_Point, Measurement]]], params: Params) -> Table:
    groups = [group for group, _ in measured]
    first, confidence = groups[0], params.margins.confidence
    rows = sorted({point for _, found in measured for point in found}, key=_place)
    return Table(
        f"{first.protocol}-{first.version}-distortions",
        f"{first.protocol} {first.version}: accuracy on distorted images, %",
        (
            Column("distortion", "distortion"),
            Column("value", "value", number=True),
            *model_columns(groups),
        ),
        (
            *(
                (
                    *_what(point),
                    *(_accuracy(found.get(point), confidence) for _, found in measured),
                )
                for point in rows
            ),
            *_test_sets(groups, confidence),
        ),
        (
            "± is the standard deviation over the n seeds that were evaluated (n − 1); a dash: one "
            "seed has none, or this was not measured.",
            f"On {_images(groups)} images. Each row changes one thing and leaves all else as it "
            "is. Shifts go towards one of eight directions drawn for each image, affine maps are "
            "drawn for each image. Nothing here was chosen to mislead a network: no attacks.",
            *common_notes(groups),
        ),
    )


def _test_sets(groups: Sequence[Group], confidence: float) -> Iterator[tuple[Cell, ...]]:
    for metric, title in _TEST_SETS.items():
        measured = [_once(group, metric) for group in groups]
        if any(measured):
            accuracies = (_accuracy(one, confidence) for one in measured)
            yield Cell(title, metric), NOTHING, *accuracies


def _once(group: Group, metric: str) -> Measurement | None:
    """What the end of training measured."""
    own = (one for one in group.measurements if one.metric == metric and not one.setting)
    return next(own, None)


def _place(point: _Point) -> list[tuple[int, float]]:
    """Sorting key: nothing first, then distortion by distortion, rising."""
    return [(list(_DISTORTIONS).index(name), value) for name, value in point]


def _what(point: _Point) -> tuple[Cell, Cell]:
    names = " and ".join(name for name, _ in point) or "none"
    titles = " and ".join(_DISTORTIONS[name] for name, _ in point) or "none"
    if not point:
        return Cell(titles, names), NOTHING
    values = " and ".join(plain(value) for _, value in point)
    return Cell(titles, names), Cell(values, point[0][1] if len(point) == 1 else values)


def _images(groups: Sequence[Group]) -> str:
    sizes = {group.test_images({"evaluation": "distortions"}) for group in groups}
    return " or ".join(plain(size) for size in sorted(filter(None, sizes)))


def _accuracy(measurement: Measurement | None, confidence: float) -> Cell:
    """With the one decimal of an accuracy under attack."""
    if measurement is None:
        return NOTHING
    found = summarise(list(measurement.values.values()), confidence)
    return Cell(mean_sd_and_n("accuracy_pct", found), summary_values(found))
