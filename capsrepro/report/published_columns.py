"""What was published beside what we measured, and the verdict on it, metric by metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from capsrepro.claims import ValueClaim
from capsrepro.report.formatting import explain, title_of
from capsrepro.report.judging import Judgement
from capsrepro.report.rendering import Cell, Column
from capsrepro.report.summaries import Group
from capsrepro.report.verdicts import Verdict

Published = Mapping[tuple[str | None, str], Sequence[Judgement]]
"""Judged claims about a value by their names of protocol and model."""


def published_values(judgements: Iterable[Judgement]) -> Published:
    """Those that are judged and hold without further conditions, in the order of the claims."""
    found: dict[tuple[str | None, str], list[Judgement]] = {}
    for judgement in judgements:
        claim = judgement.claim
        judged = judgement.verdict is not None and not claim.condition
        if isinstance(claim, ValueClaim) and judged:
            found.setdefault((claim.protocol, claim.model), []).append(judgement)
    return found


def published_columns(metrics: Sequence[str]) -> Iterator[Column]:
    """Two columns for each metric: the published numbers and their verdicts."""
    for metric in metrics:
        several = len(metrics) > 1
        of, about = (f"{metric}_", f": {title_of(metric)}") if several else ("", "")
        yield Column(f"{of}published", f"published{about}")
        yield Column(f"{of}verdict", f"verdict{about}")


def published_cells(
    group: Group, metrics: Sequence[str], published: Published
) -> Iterator[Cell | None]:
    """The cells below `published_columns`; None where nothing was published."""
    judgements = [
        judgement
        for judgement in published.get((group.judged_as, group.stands_for), ())
        if judgement.claim.reading in (None, group.reading)
    ]
    for metric in metrics:
        # Some papers print the accuracy where we measured the error.
        accuracy = metric.replace("_error_pct", "_accuracy_pct")
        prefixes = {accuracy: "accuracy ", metric: ""}
        yield from _cells(group, [j for j in judgements if j.claim.metric in prefixes], prefixes)


def _cells(
    group: Group, judgements: Sequence[Judgement], prefixes: Mapping[str, str]
) -> tuple[Cell | None, Cell | None]:
    if not judgements:
        return None, None
    claims = [judgement.claim for judgement in judgements]
    verdicts = [_verdict(group, judgement) for judgement in judgements]
    published = "; ".join(
        f"{prefixes[c.metric]}{c.verbatim} ({c.paper}, {c.locator})" for c in claims
    )
    return (
        Cell(published, {"claim": "; ".join(c.id for c in claims), "verbatim": published}),
        Cell(
            "; ".join(f"{verdict.status}: {explain(verdict)}" for verdict in verdicts),
            "; ".join(verdict.status for verdict in verdicts),
        ),
    )


def _verdict(group: Group, judgement: Judgement) -> Verdict:
    """What these runs alone say about a claim, whichever runs its verdict rests on."""
    ours = (c.verdict for c in judgement.candidates if c.group is group)
    reason = "not measured" if group.seeds else "no finished run"
    return next(ours, Verdict("not run", reason))
