"""The table of all claims with their verdicts, and how often each verdict was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

from capsrepro.claims import BoundClaim, Claim, OrderingClaim
from capsrepro.metrics import METRICS
from capsrepro.report.formatting import (
    advantage,
    explain,
    mean_and_sd,
    percentage,
    plain,
    summary_values,
)
from capsrepro.report.judging import Candidate, Judgement
from capsrepro.report.measurements import Fact, loss_of
from capsrepro.report.rendering import Cell, Column, Scalar, Table
from capsrepro.report.tables import NOTHING
from capsrepro.report.verdicts import Status, Verdict
from capsrepro.schema.params import Params


def claims_table(judgements: Sequence[Judgement], params: Params) -> Table:
    """Every claim with its verdict; further runs that stood trial for it have rows of their own."""
    columns = (
        Column("id", "claim"),
        Column("statement", "statement"),
        Column("published", "published"),
        Column("run", "our runs"),
        Column("ours", "ours", number=True),
        Column("verdict", "verdict"),
        Column("reason", "why"),
        Column("source", "source"),
    )
    rows = tuple(row for judgement in judgements for row in _rows(judgement))
    margins = params.margins
    notes = (
        "ours: mean ± standard deviation over n seeds; for an ordering, by how many percentage "
        "points (pp) the mean of the model said to be better is better.",
        f"A value is reproduced when the whole {percentage(margins.confidence)} interval over at "
        f"least {margins.minimum_seeds} seeds lies within what two test sets of that size would "
        "differ by, and differs when the whole interval lies outside.",
        "An ordering is reproduced when a one-sided Welch test over seeds, corrected by Holm over "
        f"the orderings of its paper, is significant at {percentage(margins.ordering_alpha)}.",
    )
    return Table("claims", "Published claims and their verdicts", columns, rows, notes)


def verdict_counts_table(judgements: Sequence[Judgement]) -> Table:
    """How many claims of each paper have which verdict."""
    statuses = [*get_args(Status), "context"]
    counts: dict[str, Counter[str]] = {}
    for judgement in judgements:
        counts.setdefault(judgement.claim.paper, Counter())[judgement.status] += 1
    columns = (
        Column("paper", "paper"),
        *(Column(status.replace(" ", "_"), status, number=True) for status in statuses),
    )
    rows = tuple(
        (Cell(paper, paper), *(Cell(plain(found[s]), found[s]) for s in statuses))
        for paper, found in counts.items()
    )
    notes = (
        "not available: what it was measured on could not be had.",
        "context: cited from others, unverified, or measured by independent reproductions.",
    )
    return Table("verdicts", "Verdicts on the published claims", columns, rows, notes)


def _rows(judgement: Judgement) -> list[tuple[Cell, ...]]:
    claim, verdict = judgement.claim, judgement.verdict
    source = f"{claim.paper}, {claim.locator}"
    if claim.source != "text":
        source += f" ({claim.source})"
    head = (Cell(claim.id, claim.id), _text(_statement(claim)), _published(claim))
    if verdict is None:
        tail = (NOTHING, NOTHING, _text("context"), _text(_context(claim)), _text(source))
        return [(*head, *tail)]
    if not judgement.candidates:
        tail = (NOTHING, NOTHING, _text(verdict.status), _text(explain(verdict)), _text(source))
        return [(*head, *tail)]
    return [
        (
            *head,
            _text(_runs(candidate)),
            _ours(claim, candidate.verdict),
            _text(candidate.verdict.status),
            _text(explain(candidate.verdict)),
            _text(source),
        )
        for candidate in judgement.candidates
    ]


def _text(text: str) -> Cell:
    return Cell(text, text)


def _statement(claim: Claim) -> str:
    metric = METRICS[claim.metric].title if claim.metric in METRICS else claim.metric
    if isinstance(claim, OrderingClaim):
        statement = f"{claim.better} better than {claim.worse}: {metric}"
    elif isinstance(claim, BoundClaim):
        statement = f"{claim.model}: {metric} {claim.relation} {plain(claim.value)}"
    else:
        statement = f"{claim.model}: {metric}"
    return statement + (f" ({_condition(claim.condition)})" if claim.condition else "")


def _condition(condition: Mapping[str, Fact]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {value if isinstance(value, str) else plain(value)}"
        for key, value in condition.items()
    )


def _published(claim: Claim) -> Cell:
    text = claim.verbatim
    if claim.reading_error is not None:
        text += f" (read to ± {plain(claim.reading_error)})"
    return Cell(text, {"verbatim": claim.verbatim, "value": getattr(claim, "value", None)})


def _context(claim: Claim) -> str:
    if claim.cited_from:
        return f"cited from {claim.cited_from}"
    if claim.reported_by:
        return f"measured by {claim.reported_by}"
    return "source not seen" if claim.unverified else "known to be unreliable"


def _runs(candidate: Candidate) -> str:
    name = f"{candidate.group.protocol}/{candidate.group.model}"
    setting = candidate.setting
    attack = setting.get("name", setting.get("attack"))
    if candidate.against is not None:
        # Either may have been attacked on a loss of its own.
        return f"{name} against {candidate.against.model}" + (f" ({attack})" if attack else "")
    return name + (f" ({attack} on the {loss_of(setting)} loss)" if attack else "")


def _ours(claim: Claim, verdict: Verdict) -> Cell:
    if verdict.ours is None:
        return NOTHING
    values: dict[str, Scalar] = {**summary_values(verdict.ours), "effect_pp": verdict.effect_pp}
    if isinstance(claim, OrderingClaim) and verdict.effect_pp is not None:
        return Cell(advantage(verdict.effect_pp), values)
    if verdict.ours.sd == 0 and METRICS.get(claim.metric) and not METRICS[claim.metric].unit:
        return Cell(plain(verdict.ours.mean), values)
    return Cell(f"{mean_and_sd(claim.metric, verdict.ours)} (n = {verdict.ours.n})", values)
