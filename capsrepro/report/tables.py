"""The table of results of a protocol: what we measured beside what was published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from capsrepro.report.attack_checks import findings
from capsrepro.report.attack_results import attack_results
from capsrepro.report.formatting import percentage, plain
from capsrepro.report.headlines import (
    headline_cells,
    headline_columns,
    headline_metrics,
    resolution_note,
)
from capsrepro.report.judging import Judgement
from capsrepro.report.multicrop import multicrop_notes
from capsrepro.report.published_columns import (
    Published,
    published_cells,
    published_columns,
    published_values,
)
from capsrepro.report.rendering import Cell, Column, Scalar, Table
from capsrepro.report.selection import selection_notes
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params, Protocol

NOTHING = Cell("–")


def result_tables(
    protocol: str, groups: Sequence[Group], judgements: Iterable[Judgement], params: Params
) -> list[Table]:
    """One table per version of a protocol, the present one first; empty when nothing is known."""
    ours = [group for group in groups if group.protocol == protocol]
    published = published_values(judgements)
    versions = dict.fromkeys(group.version for group in ours)
    return [
        _result_table([g for g in ours if g.version == version], published, params)
        for version in versions
    ]


def model_name(group: Group) -> str:
    """The model of a group, marked where params.yaml asks for these runs no more."""
    return f"{group.model} (superseded)" if group.superseded else group.model


def seeds_cell(group: Group) -> Cell:
    """How many seeds finished, and which failed or are missing."""
    failed, missing = ", ".join(map(str, group.failed)), ", ".join(map(str, group.missing))
    asides = [f"{word} {seeds}" for word, seeds in (("failed", failed), ("missing", missing))]
    aside = "; ".join(text for text in asides if not text.endswith(" "))
    seeds: dict[str, Scalar] = {"n": len(group.seeds), "failed": failed, "missing": missing}
    return Cell(f"{len(group.seeds)} ({aside})" if aside else str(len(group.seeds)), seeds)


def _result_table(groups: Sequence[Group], published: Published, params: Params) -> Table:
    confidence = params.margins.confidence
    first = groups[0]
    protocol = _asked(first, params)
    metrics = headline_metrics(groups, protocol)
    columns = (
        Column("model", "model"),
        Column("reading", "reading"),
        Column("seeds", "seeds", number=True),
        *headline_columns(metrics, confidence),
        *published_columns(metrics),
    )
    rows = tuple(
        (
            *_model_cells(group),
            *(cell or NOTHING for cell in headline_cells(group, metrics, confidence)),
            *(cell or NOTHING for cell in published_cells(group, metrics, published)),
        )
        for group in groups
    )
    notes = (
        _spread_note(confidence),
        *resolution_note(groups, metrics),
        *(selection_notes(protocol, params) if protocol else ()),
        *_attack_note(groups, confidence),
        *multicrop_notes(groups),
        *_notes(groups),
    )
    return Table(f"{first.protocol}-{first.version}", _title(groups), columns, rows, notes)


def _asked(group: Group, params: Params) -> Protocol | None:
    """What params.yaml asks of these runs; None when its protocol is gone or of another version."""
    protocol = params.protocols.get(group.protocol)
    return protocol if protocol and protocol.version == group.version else None


def _title(groups: Sequence[Group]) -> str:
    first = groups[0]
    title = f"{first.protocol} {first.version}: {first.title}"
    budgets = sorted({group.budget for group in groups} - {1.0})
    return title + (f" (budget {', '.join(map(plain, budgets))} of 1)" if budgets else "")


def _model_cells(group: Group) -> list[Cell]:
    """Which runs: model, reading, seeds."""
    identity: dict[str, Scalar] = {
        "name": group.model,
        "version": group.version,
        "budget": group.budget,
        "superseded": group.superseded,
    }
    return [
        Cell(model_name(group), identity),
        Cell(group.reading, group.reading),
        seeds_cell(group),
    ]


def _spread_note(confidence: float) -> str:
    return (
        "± is the standard deviation over seeds (n − 1); a dash: one seed has none. "
        f"The interval is Student's t at {percentage(confidence)} over seeds."
    )


def _attack_note(groups: Sequence[Group], confidence: float) -> Iterator[str]:
    """Where to read of attacks, and which of them not to believe."""
    results = attack_results(groups, ())
    if not results:
        return
    where = f"Accuracy under attack: the table {groups[0].protocol}-robustness"
    doubtful: dict[str, list[str]] = {}
    for found in findings(results, confidence):
        if found.doubtful:
            doubtful.setdefault(found.attacked.group.model, []).append(found.attacked.name)
    told = "; ".join(
        f"{model} ({', '.join(dict.fromkeys(attacks))})" for model, attacks in doubtful.items()
    )
    if told:
        yield (
            f"{where}. Its checks found gradients that look masked or an attack that looks broken, "
            f"so that these may be less robust than they seem there: {told}."
        )
    else:
        yield f"{where}, where no check found masked gradients or a broken attack."


def _notes(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        if group.members > 1:
            yield (
                f"{group.model}: the scores of {group.members} seeds are added up image by image. "
                "It is one measurement: without other ensembles beside it nothing says how far "
                "the next would differ, so it is inconclusive at best."
            )
    if any(group.budget != 1 for group in groups):
        yield "Less than the full training budget: nothing here is compared with the papers."
    for group in groups:
        for seed, reason in group.failed.items():
            yield f"{group.model}/seed-{seed} failed: {reason}."
        if group.superseded:
            yield f"{group.model} is superseded: {group.superseded}."
        if group.uncommitted:
            seeds = ", ".join(map(str, group.uncommitted))
            yield f"{group.model}: run from uncommitted code: seed {seeds}."
