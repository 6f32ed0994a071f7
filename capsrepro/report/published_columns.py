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
"""Claims about a value by their names of protocol and model."""


def published_values(judgements: Iterable[Judgement]) -> Published:
    """Those that hold without further conditions, in the order of the claims.

    What reproductions measured stands only where no paper's value does.
    """
    judged: dict[tuple[str | None, str], list[Judgement]] = {}
    reproduced: dict[tuple[str | None, str], list[Judgement]] = {}
    for judgement in judgements:
        claim = judgement.claim
        if not isinstance(claim, ValueClaim) or claim.condition:
            continue
        if judgement.verdict is not None:
            judged.setdefault((claim.protocol, claim.model), []).append(judgement)
        elif claim.reported_by and not (claim.unverified or claim.unreliable):
            reproduced.setdefault((claim.protocol, claim.model), []).append(judgement)
    return reproduced | judged


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
    published = "; ".join(
        f"{prefixes[c.metric]}{c.verbatim} ({c.reported_by or c.paper}, {c.locator})"
        for c in claims
    )
    said = [_said(group, judgement) for judgement in judgements]
    return (
        Cell(published, {"claim": "; ".join(c.id for c in claims), "verbatim": published}),
        Cell(
            "; ".join(f"{status}: {why}" for status, why in said),
            "; ".join(status for status, _ in said),
        ),
    )


def _said(group: Group, judgement: Judgement) -> tuple[str, str]:
    """Status and reason; of a reproduction, never judged, nothing of how near ours come."""
    if judgement.verdict is None:
        return judgement.status, f"measured by {judgement.claim.reported_by}"
    verdict = _verdict(group, judgement)
    return verdict.status, explain(verdict)


def _verdict(group: Group, judgement: Judgement) -> Verdict:
    """What these runs alone say about a claim, whichever runs its verdict rests on."""
    ours = (c.verdict for c in judgement.candidates if c.group is group)
    reason = "not measured" if group.seeds else "no finished run"
    return next(ours, Verdict("not run", reason))
