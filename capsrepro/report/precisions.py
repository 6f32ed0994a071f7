"""Whether a network learns the same when its convolutions are less exact.

Protocols that differ in nothing but their precision are compared model by model, each with the one
in float32. No paper is involved, so that a short budget is no bar: both had the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

from capsrepro.errors import UsageError
from capsrepro.report.formatting import (
    advantage,
    explain,
    mean_and_sd,
    percentage,
    points,
    spread,
    summary_values,
)
from capsrepro.report.rendering import Cell, Column, Table
from capsrepro.report.statistics import summarise, two_test_sets_margin, welch_interval
from capsrepro.report.summaries import Group
from capsrepro.report.tables import NOTHING, seeds_cell
from capsrepro.report.verdicts import Evidence, Verdict, insufficient
from capsrepro.schema.params import Margins, Params

_METRIC = "test_error_pct"
_REFERENCE = "float32"

Word = Literal["agree", "differ", "inconclusive"]

_SAYS: dict[Word, str] = {
    "agree": "whole interval within",
    "differ": "whole interval outside",
    "inconclusive": "interval neither wholly within nor wholly outside",
}


@dataclass(frozen=True)
class Agreement:
    """What may be said of one precision and float32.

    Attributes:
        word: Whether the errors agree.
        barred: What kept them from being compared; None where nothing did.
        difference_pp: Its mean error minus that of float32; None where one was not measured.
        interval_pp: Welch's interval of the difference; None where there is no spread.
        margin_pp: Within which the interval must lie; None where they were not compared.
    """

    word: Word
    barred: Verdict | None = None
    difference_pp: float | None = None
    interval_pp: tuple[float, float] | None = None
    margin_pp: float | None = None


def agreement(group: Group, reference: Group, margins: Margins) -> Agreement:
    """Hold the test errors of one precision against those of float32.

    They agree only if the whole interval of their difference lies within the margin, which is what
    the error of float32 would differ by between two test sets.

    Args:
        group: Runs of one model in a precision.
        reference: Runs of the same model in float32, otherwise trained alike.
        margins: Of params.yaml.
    """
    ours, theirs = (tuple(one.values(_METRIC).values()) for one in (group, reference))
    if not ours or not theirs:
        return Agreement("inconclusive", Verdict("not run", "not measured in both precisions"))
    difference = mean(ours) - mean(theirs)
    interval = welch_interval(ours, theirs, margins.confidence)
    size = group.test_images()
    barred = _insufficient(group, ours, margins) or _insufficient(reference, theirs, margins)
    if barred is None and interval is None:
        barred = Verdict("inconclusive", "no spread over the seeds")
    if barred is None and size != reference.test_images():
        barred = Verdict("inconclusive", "not tested on the same number of images")
    if barred is None and size is None:
        barred = Verdict("inconclusive", "no margin, because the size of the test set is unknown")
    if barred is not None or interval is None or size is None:
        return Agreement("inconclusive", barred, difference, interval)
    margin = two_test_sets_margin(mean(theirs), size, margins.confidence)
    return Agreement(_word(*interval, margin), None, difference, interval, margin)


def _insufficient(group: Group, values: tuple[float, ...], margins: Margins) -> Verdict | None:
    return insufficient(Evidence(values, group.budget, failed=len(group.failed)), margins)


def _word(low: float, high: float, margin: float) -> Word:
    if -margin <= low and high <= margin:
        return "agree"
    return "differ" if high < -margin or low > margin else "inconclusive"


def precision_table(groups: Sequence[Group], params: Params) -> Table | None:
    """One row for each model and precision, float32 first; None before there is any record."""
    compared = list(_pairs(groups, params))
    if not compared:
        return None
    confidence = percentage(params.margins.confidence)
    columns = (
        Column("run", "runs"),
        Column("precision", "precision"),
        Column("seeds", "seeds", number=True),
        Column("test_error_pct", "test error, % ± SD", number=True),
        Column("interval", f"{confidence} interval", number=True),
        Column("images_per_s", "images/s ± SD", number=True),
        Column("device", "device"),
        Column("difference_pp", f"minus float32 ({confidence} interval)", number=True),
        Column("agreement", "against float32"),
    )
    rows = tuple(
        (*_measured_cells(group, params), *_compared_cells(group, reference, params))
        for group, reference in compared
    )
    title = "Precisions of the convolutions compared"
    return Table("precision", title, columns, rows, tuple(_notes(params)))


def of_precisions(table: Table | None, protocols: Sequence[str]) -> Table:
    """The same table with only what one of the protocols takes part in.

    Args:
        table: From `precision_table`.
        protocols: Their names; empty means all.

    Raises:
        UsageError: Nothing was measured there in any precision.
    """
    if table is not None and not protocols:
        return table
    rows = [] if table is None else table.rows
    here = {_compared_with(row) for row in rows if _name(row).partition("/")[0] in protocols}
    if table is None or not here:
        under = f" under {', '.join(protocols)}" if protocols else ""
        raise UsageError(
            f"no record compares precisions{under}; docs/protocols.md says which protocols do, and "
            "`capsrepro pending` which of their runs are owed."
        )
    return replace(table, rows=tuple(row for row in rows if _compared_with(row) in here))


def _name(row: Sequence[Cell]) -> str:
    return row[0].text


def _compared_with(row: Sequence[Cell]) -> object:
    value = row[-1].value
    return value.get("against") if isinstance(value, dict) else value


def _pairs(groups: Sequence[Group], params: Params) -> Iterator[tuple[Group, Group]]:
    """Every group of a compared protocol with that in float32, which stands first."""
    present = {(g.protocol, g.model): g for g in groups if g.superseded is None and g.members == 1}
    for protocols in params.precisions:
        first = protocols.get(_REFERENCE)
        if first is None:
            continue
        for model in params.protocols[first].run_models:
            alike = [present[name, model] for name in protocols.values() if name != first]
            alike.insert(0, present[first, model])
            if any(group.seeds for group in alike):
                yield from ((group, alike[0]) for group in alike)


def _measured_cells(group: Group, params: Params) -> list[Cell]:
    cells = [
        Cell(f"{group.protocol}/{group.model}", f"{group.protocol}/{group.model}"),
        Cell(precision := params.protocols[group.protocol].recipe.precision, precision),
        seeds_cell(group),
    ]
    errors = list(group.values(_METRIC).values())
    if not errors:
        return [*cells, NOTHING, NOTHING, NOTHING, NOTHING]
    confidence = params.margins.confidence
    ours = summarise(errors, confidence)
    low, high = ours.interval or (None, None)
    speeds = [record.cost.images_per_s for record in group.runs.values()]
    speed = summarise(speeds, confidence)
    devices = ", ".join(dict.fromkeys(r.environment.device for r in group.runs.values()))
    return [
        *cells,
        Cell(mean_and_sd(_METRIC, ours), summary_values(ours)),
        NOTHING
        if low is None
        else Cell(f"{spread(_METRIC, low)} to {spread(_METRIC, high)}", {"low": low, "high": high}),
        Cell(mean_and_sd("images_per_s", speed), summary_values(speed)),
        Cell(devices, devices),
    ]


def _compared_cells(group: Group, reference: Group, params: Params) -> list[Cell]:
    against = f"{reference.protocol}/{reference.model}"
    if group is reference:
        return [NOTHING, Cell("–", {"against": against})]
    found = agreement(group, reference, params.margins)
    why = _SAYS[found.word] if found.barred is None else explain(found.barred)
    if found.margin_pp is not None:
        why += f" ± {points(found.margin_pp)} pp"
    told = {"against": against, "verdict": found.word, "why": why, "margin_pp": found.margin_pp}
    word = Cell(f"{found.word}: {why}", told)
    if found.difference_pp is None:
        return [NOTHING, word]
    low, high = found.interval_pp or (None, None)
    beside = "" if low is None or high is None else f" ({_signed(low)} to {_signed(high)})"
    numbers = {"mean": found.difference_pp, "low": low, "high": high}
    return [Cell(advantage(found.difference_pp) + beside, numbers), word]


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + points(abs(value))


def _notes(params: Params) -> Iterator[str]:
    margins = params.margins
    confidence = percentage(margins.confidence)
    yield (
        "These protocols differ in the precision of their convolutions alone; routing, losses and "
        "the optimiser are in float32 in all of them. bf16 on a processor rounds factors "
        "alike and is about as fast as float32."
    )
    yield (
        "± SD is the standard deviation over seeds (n − 1). Intervals are Student's t of a mean, "
        f"and Welch's of the difference of two, at {confidence} over seeds; pp are percentage "
        "points."
    )
    yield (
        "agree: the whole interval of the difference lies within the margin, which is what two "
        "test sets of that size would differ by at the error of float32; differ: wholly outside; "
        f"inconclusive: neither, or fewer than {margins.minimum_seeds} seeds, or one that failed. "
        "The rule was fixed before any result was seen."
    )
    yield (
        "images/s are of whole training runs as they were made: with the looks between epochs, "
        "and where several runs shared a device, each with its share of it."
    )
