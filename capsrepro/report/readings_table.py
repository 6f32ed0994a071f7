"""The table of readings: those of one published value side by side, and which comes nearer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from capsrepro.claims import Claim, ValueClaim
from capsrepro.errors import UsageError
from capsrepro.report.formatting import (
    advantage,
    explain,
    mean_and_sd,
    percentage,
    plain,
    points,
    summary_values,
)
from capsrepro.report.readings import Contest, Rival, Standing, contests, standings
from capsrepro.report.rendering import Cell, Column, Table
from capsrepro.report.statistics import summarise
from capsrepro.report.summaries import Group
from capsrepro.report.tables import NOTHING, seeds_cell
from capsrepro.schema.params import Params


def readings_table(claims: Iterable[Claim], groups: Sequence[Group], params: Params) -> Table:
    """One row for each reading of each published value and training budget."""
    confidence = params.margins.confidence
    columns = (
        Column("claim", "claim"),
        Column("published", "published, %"),
        Column("budget", "budget", number=True),
        Column("run", "our runs"),
        Column("reading", "reading"),
        Column("seeds", "seeds", number=True),
        Column("ours", "ours, % ± SD", number=True),
        Column(
            "difference_pp",
            f"ours − published (± half {percentage(confidence)} interval)",
            number=True,
        ),
        Column("nearer", "nearer"),
    )
    rows = tuple(
        (*_claim_cells(contest), *_rival_cells(contest.claim, rival, confidence), _nearer(standing))
        for contest in contests(claims, groups, params)
        for rival, standing in zip(contest.rivals, standings(contest, params.margins), strict=True)
    )
    title = "Readings of the papers beside their printed numbers"
    return Table("readings", title, columns, rows, tuple(_notes(params)))


def of_protocols(table: Table, protocols: Sequence[str]) -> Table:
    """The same table with only those values and budgets that one of the protocols stands for.

    Args:
        table: From `readings_table`.
        protocols: Their names; empty means all.

    Raises:
        UsageError: No value has two readings there.
    """
    if not protocols:
        return table
    here = {(row[0].text, row[2].text) for row in table.rows if _protocol(row) in protocols}
    if not here:
        known = ", ".join(dict.fromkeys(map(_protocol, table.rows))) or "none"
        raise UsageError(
            f"no published value has two readings under {', '.join(protocols)}; "
            f"protocols with some: {known}."
        )
    rows = tuple(row for row in table.rows if (row[0].text, row[2].text) in here)
    return replace(table, rows=rows)


def _protocol(row: Sequence[Cell]) -> str:
    return row[3].text.partition("/")[0]


def _claim_cells(contest: Contest) -> list[Cell]:
    claim = contest.claim
    printed = claim.verbatim
    if claim.reading_error is not None:
        printed += f" (read to ± {plain(claim.reading_error)})"
    return [
        Cell(claim.id, claim.id),
        Cell(
            f"{printed} ({claim.locator})",
            {"verbatim": claim.verbatim, "value": claim.value},
        ),
        Cell(plain(contest.budget), contest.budget),
    ]


def _rival_cells(claim: ValueClaim, rival: Rival, confidence: float) -> list[Cell]:
    cells = [
        Cell(f"{rival.protocol}/{rival.model}", {"protocol": rival.protocol, "model": rival.model}),
        Cell(rival.reading, rival.reading),
        seeds_cell(rival.group) if rival.group else Cell("0", {"n": 0}),
    ]
    if not rival.values:
        return [*cells, NOTHING, NOTHING]
    ours = summarise(rival.values, confidence)
    difference = ours.mean - claim.value
    half = None if ours.interval is None else (ours.interval[1] - ours.interval[0]) / 2
    beside = "" if half is None else f" (± {points(half)})"
    return [
        *cells,
        Cell(mean_and_sd(claim.metric, ours), summary_values(ours)),
        Cell(advantage(difference) + beside, {"mean": difference, "half_width": half}),
    ]


def _nearer(standing: Standing) -> Cell:
    text: str = standing.word
    why = None if standing.why is None else explain(standing.why)
    if why is not None:
        text += f": {why}"
    elif standing.p is not None and standing.by_pp is not None:
        text += f" by {points(abs(standing.by_pp))} pp"
    told = {"verdict": standing.word, "why": why, "by_pp": standing.by_pp, "p": standing.p}
    return Cell(text, told)


def _notes(params: Params) -> Iterator[str]:
    margins = params.margins
    confidence = percentage(margins.confidence)
    yield (
        "Rows with the same claim and budget are compared, no others. reading: how the network is "
        "read, as the paper's text or as its authors' code; a reading of the data is a protocol of "
        "its own (docs/deviations.md)."
    )
    yield (
        "± SD is the standard deviation over seeds (n − 1); ± behind a difference in percentage "
        f"points (pp) is half of Student's {confidence} interval over seeds; a dash: one seed has "
        "none."
    )
    yield (
        "nearer: the distance of this mean from the printed number is smaller than that of every "
        "other mean that can be compared, and farther: larger than that of one, by more than the "
        f"seeds allow: Welch's {confidence} interval of the difference of the two distances leaves "
        "out 0, wherever within its rounding the printed number lies, its own spread aside. cannot "
        f"tell: neither. At least {margins.minimum_seeds} seeds and none failed; every pair is "
        "tested by itself, without correction over the table."
    )
    yield (
        "Nearer is not reproduced: whether a number is reproduced, and what the test set leaves "
        "open, is in the other tables. Less than the full training budget (1) is never compared."
    )
