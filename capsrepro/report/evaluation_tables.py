"""What else was measured on the trained models of a protocol: one row a metric, one column a model.

All numbers of evaluations are shown but counts, what the run's own test had measured already, and
curves, which are what figures are made of. Attacks and distorted images have tables of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capsrepro.metrics import METRICS
from capsrepro.report.formatting import mean_sd_and_n, summary_values, title_of
from capsrepro.report.measurements import Measurement
from capsrepro.report.rendering import Cell, Column, Table
from capsrepro.report.statistics import summarise
from capsrepro.report.summaries import Group
from capsrepro.report.tables import NOTHING, model_name
from capsrepro.schema.params import Params

_COUNTS = ("_images", "_errors")

_Found = Mapping[tuple[str, str], Measurement]
"""By kind of evaluation and metric."""


def evaluation_tables(protocol: str, groups: Sequence[Group], params: Params) -> list[Table]:
    """One table per version of a protocol, the present one first; empty without evaluations."""
    versions: dict[str, list[tuple[Group, _Found]]] = {}
    for group in groups:
        if group.protocol == protocol and (found := _evaluated(group)):
            versions.setdefault(group.version, []).append((group, found))
    return [_evaluation_table(evaluated, params) for evaluated in versions.values()]


def _evaluated(group: Group) -> _Found:
    """What evaluations measured once, and training did not measure before them."""
    known = {measurement.metric for measurement in group.measurements if not measurement.setting}
    found: dict[tuple[str, str], Measurement] = {}
    for measurement in group.measurements:
        metric, kind = measurement.metric, measurement.setting.get("evaluation")
        if kind is None or measurement.point or metric in known or metric.endswith(_COUNTS):
            continue
        found[str(kind), metric] = measurement
    return found


def _evaluation_table(evaluated: Sequence[tuple[Group, _Found]], params: Params) -> Table:
    first = evaluated[0][0]
    rows = sorted({row for _, found in evaluated for row in found}, key=_place)
    name = f"{first.protocol}-{first.version}"
    return Table(
        f"{name}-evaluations",
        f"{first.protocol} {first.version}: what else was measured",
        (
            Column("metric", "metric"),
            Column("unit", "unit"),
            Column("better", "better"),
            Column("evaluation", "evaluation"),
            *model_columns([group for group, _ in evaluated]),
        ),
        tuple(
            (
                *_metric_cells(*row),
                *(_value(found.get(row), params.margins.confidence) for _, found in evaluated),
            )
            for row in rows
        ),
        tuple(_notes([group for group, _ in evaluated])),
    )


def _place(row: tuple[str, str]) -> tuple[str, int, str]:
    """Sorting key: evaluation by evaluation, metrics as METRICS has them."""
    kind, metric = row
    known = list(METRICS)
    return kind, known.index(metric) if metric in METRICS else len(known), metric


def model_columns(groups: Sequence[Group]) -> list[Column]:
    """One column for each model.

    A key may occur once only, but a model may have superseded runs beside its own.
    """
    columns = []
    for i, group in enumerate(groups):
        before = sum(other.model == group.model for other in groups[:i])
        key = f"{group.model}-{before + 1}" if before else group.model
        columns.append(Column(key, f"{model_name(group)} ± SD", number=True))
    return columns


def _metric_cells(kind: str, metric: str) -> list[Cell]:
    unit = METRICS[metric].unit if metric in METRICS else ""
    better = METRICS[metric].better if metric in METRICS else "neither"
    return [
        Cell(title_of(metric), metric),
        Cell(unit, unit),
        NOTHING if better == "neither" else Cell(better, better),
        Cell(kind, kind),
    ]


def _value(measurement: Measurement | None, confidence: float) -> Cell:
    if measurement is None:
        return NOTHING
    found = summarise(list(measurement.values.values()), confidence)
    return Cell(mean_sd_and_n(measurement.metric, found), summary_values(found))


def _notes(groups: Sequence[Group]) -> list[str]:
    notes = [
        "± is the standard deviation over the n seeds that were evaluated (n − 1); a dash: one "
        "seed has none, or this model was not evaluated so.",
        "How each number is measured: docs/deviations.md. Numbers along a curve are in the figures "
        "(docs/figures.md).",
    ]
    return [*notes, *common_notes(groups)]


def common_notes(groups: Sequence[Group]) -> list[str]:
    """What must be said of runs wherever they are shown: a short budget, superseded ones."""
    notes = []
    if any(group.budget != 1 for group in groups):
        notes.append(
            "Less than the full training budget: nothing here is compared with the papers."
        )
    notes += [
        f"{group.model} is superseded: {group.superseded}." for group in groups if group.superseded
    ]
    return notes
