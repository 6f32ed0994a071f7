"""All that claims are held against: records, and what stands beside them where it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from capsrepro.claims import Claim
from capsrepro.records import Record
from capsrepro.report.comparisons import with_comparisons
from capsrepro.report.drawn_widths import with_drawn_widths
from capsrepro.report.ensembles import with_ensembles
from capsrepro.report.histories import with_histories
from capsrepro.report.multicrop import with_multicrops
from capsrepro.report.summaries import Group, group_records
from capsrepro.schema.params import Params


def gather(
    records: Iterable[Record],
    claims: Sequence[Claim],
    params: Params,
    results: Path | None = None,
) -> list[Group]:
    """Every group of runs, with what histories, pictures and class scores add to its records.

    Args:
        records: All records there are.
        claims: All claims: a file is read only where one of them needs it.
        params: What is asked for.
        results: The results folder; None keeps to the records.

    Raises:
        CapsreproError: A file that a record speaks of is missing or damaged.
    """
    groups = with_multicrops(group_records(records, params), params)
    groups = with_comparisons(groups, claims, params)
    if results is None:
        return groups
    groups = with_histories(groups, claims, results)
    groups = with_drawn_widths(groups, claims, results)
    return with_ensembles(groups, params, results)
