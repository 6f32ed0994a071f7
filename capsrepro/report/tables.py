"""The table of results of a protocol: what we measured beside what was published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from capsrepro.claims import ValueClaim
from capsrepro.report.formatting import (
    epsilon,
    explain,
    mean_and_sd,
    percentage,
    plain,
    points,
    quantity,
    spread,
    summary_values,
)
from capsrepro.report.judging import Judgement
from capsrepro.report.measurements import Fact, Measurement, loss_of
from capsrepro.report.rendering import Cell, Column, Scalar, Table
from capsrepro.report.statistics import binomial_standard_error, summarise
from capsrepro.report.summaries import Group
from capsrepro.report.verdicts import Verdict
from capsrepro.schema.params import Params

NOTHING = Cell("–")

_Published = Mapping[tuple[str, str], Sequence[Judgement]]
"""Claims about a test error by their names of protocol and model."""


def result_tables(
    protocol: str, groups: Sequence[Group], judgements: Iterable[Judgement], params: Params
) -> list[Table]:
    """One table per version of a protocol, the present one first; empty when nothing is known."""
    ours = [group for group in groups if group.protocol == protocol]
    published = _published(judgements)
    versions = dict.fromkeys(group.version for group in ours)
    return [
        _result_table([g for g in ours if g.version == version], published, params)
        for version in versions
    ]


def seeds_cell(group: Group) -> Cell:
    """How many seeds finished, and which failed or are missing."""
    failed, missing = ", ".join(map(str, group.failed)), ", ".join(map(str, group.missing))
    asides = [f"{word} {seeds}" for word, seeds in (("failed", failed), ("missing", missing))]
    aside = "; ".join(text for text in asides if not text.endswith(" "))
    seeds: dict[str, Scalar] = {"n": len(group.seeds), "failed": failed, "missing": missing}
    return Cell(f"{len(group.seeds)} ({aside})" if aside else str(len(group.seeds)), seeds)


def _published(judgements: Iterable[Judgement]) -> _Published:
    found: dict[tuple[str, str], list[Judgement]] = {}
    for judgement in judgements:
        claim = judgement.claim
        tested = claim.metric in ("test_error_pct", "test_accuracy_pct") and not claim.condition
        if isinstance(claim, ValueClaim) and tested and judgement.verdict is not None:
            found.setdefault((claim.protocol, claim.model), []).append(judgement)
    return found


def _result_table(groups: Sequence[Group], published: _Published, params: Params) -> Table:
    confidence = params.margins.confidence
    epsilons = _epsilons(groups)
    first = groups[0]
    title = f"{first.protocol} {first.version}: {first.title}"
    budgets = sorted({group.budget for group in groups} - {1.0})
    if budgets:
        title += f" (budget {', '.join(map(plain, budgets))} of 1)"
    rows = tuple(
        (
            *_model_cells(group),
            *_error_cells(group, confidence),
            *_attack_cells(group, epsilons, confidence),
            *_published_cells(group, published.get((group.judged_as or "", group.stands_for), ())),
        )
        for group in groups
    )
    notes = tuple(_notes(groups, confidence))
    name = f"{first.protocol}-{first.version}"
    return Table(name, title, _columns(epsilons, confidence), rows, notes)


def _columns(epsilons: Sequence[float], confidence: float) -> tuple[Column, ...]:
    attacked = [
        Column(
            f"fgsm_{epsilon(size)}_accuracy_pct",
            f"FGSM {epsilon(size)}: accuracy %",
            number=True,
        )
        for size in epsilons
    ]
    return (
        Column("model", "model"),
        Column("reading", "reading"),
        Column("seeds", "seeds", number=True),
        Column("test_error_pct", "test error % ± SD", number=True),
        Column("interval", f"{percentage(confidence)} interval", number=True),
        Column("resolution_pp", "resolution, pp", number=True),
        *attacked,
        *([Column("zero_gradient_pct", "zero gradients %", number=True)] if attacked else []),
        Column("published", "published"),
        Column("verdict", "verdict"),
    )


def _model_cells(group: Group) -> list[Cell]:
    """Which runs: model, reading, seeds."""
    name = f"{group.model} (superseded)" if group.superseded else group.model
    identity: dict[str, Scalar] = {
        "name": group.model,
        "version": group.version,
        "budget": group.budget,
        "superseded": group.superseded,
    }
    return [Cell(name, identity), Cell(group.reading, group.reading), seeds_cell(group)]


def _error_cells(group: Group, confidence: float) -> list[Cell]:
    """Test error, its interval, and what the test set resolves."""
    values = list(group.values("test_error_pct").values())
    if not values:
        return [NOTHING, NOTHING, NOTHING]
    error = summarise(values, confidence)
    told = summary_values(error)
    ends = {"low": told.pop("low"), "high": told.pop("high")}
    cells = [Cell(mean_and_sd("test_error_pct", error), told)]
    if error.interval is None:
        cells.append(NOTHING)
    else:
        low, high = (spread("test_error_pct", end) for end in error.interval)
        cells.append(Cell(f"{low} to {high}", ends))
    images = group.test_images()
    if images is None:
        return [*cells, NOTHING]
    resolution = 100 * binomial_standard_error(error.mean / 100, images)
    return [*cells, Cell(points(resolution), {"se": resolution, "test_images": images})]


def _fgsm(group: Group) -> dict[str, list[Measurement]]:
    """What FGSM measured, by metric; of one setting, the one with most seeds.

    A run keeps one FGSM record, so a second setting is what some seeds still have from before.
    """
    settings: dict[tuple[tuple[str, Fact], ...], list[Measurement]] = {}
    for measurement in group.measurements:
        if measurement.setting.get("attack") == "fgsm":
            settings.setdefault(tuple(measurement.setting.items()), []).append(measurement)
    chosen = max(settings.values(), key=lambda found: len(found[0].values), default=[])
    by_metric: dict[str, list[Measurement]] = {}
    for measurement in chosen:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    return by_metric


def _epsilons(groups: Sequence[Group]) -> list[float]:
    measured = [m for group in groups for m in _fgsm(group).get("accuracy_pct", [])]
    return sorted({float(measurement.point["epsilon"]) for measurement in measured})


def _attack_cells(group: Group, epsilons: Sequence[float], confidence: float) -> list[Cell]:
    if not epsilons:
        return []
    measured = _fgsm(group)
    by_epsilon = {m.point["epsilon"]: m.values for m in measured.get("accuracy_pct", [])}
    cells = []
    for size in epsilons:
        if size in by_epsilon:
            accuracy = summarise(list(by_epsilon[size].values()), confidence)
            cells.append(Cell(mean_and_sd("accuracy_pct", accuracy), summary_values(accuracy)))
        else:
            cells.append(NOTHING)
    zeros = [v for m in measured.get("zero_gradient_pct", []) for v in m.values.values()]
    most = max(zeros, default=None)
    return [*cells, NOTHING if most is None else Cell(quantity("accuracy_pct", most), most)]


def _published_cells(group: Group, judgements: Sequence[Judgement]) -> list[Cell]:
    claims, numbers, statuses, verdicts = [], [], [], []
    for judgement in judgements:
        claim = judgement.claim
        if claim.reading not in (None, group.reading):
            continue
        verdict = next((c.verdict for c in judgement.candidates if c.group is group), None)
        verdict = verdict or Verdict("not run", "no finished run")
        claims.append(claim.id)
        what = "" if claim.metric == "test_error_pct" else "accuracy "
        numbers.append(f"{what}{claim.verbatim} ({claim.paper}, {claim.locator})")
        statuses.append(verdict.status)
        verdicts.append(f"{verdict.status}: {explain(verdict)}")
    if not claims:
        return [NOTHING, NOTHING]
    published = "; ".join(numbers)
    return [
        Cell(published, {"claim": "; ".join(claims), "verbatim": published}),
        Cell("; ".join(verdicts), "; ".join(statuses)),
    ]


def _notes(groups: Sequence[Group], confidence: float) -> Iterator[str]:
    yield (
        "± is the standard deviation over seeds (n − 1); a dash: one seed has none. "
        f"The interval is Student's t at {percentage(confidence)} over seeds."
    )
    sizes = sorted({size for group in groups if (size := group.test_images())})
    if sizes:
        yield (
            "Resolution is the binomial standard error of the test error on "
            f"{' or '.join(map(plain, sizes))} images: what the test set, not the seeds, leaves "
            "open."
        )
    losses: dict[str, list[str]] = {}
    for group in groups:
        for measurement in _fgsm(group).get("accuracy_pct", [])[:1]:
            losses.setdefault(loss_of(measurement.setting), []).append(group.model)
    if losses:
        told = "; ".join(f"{loss} ({', '.join(models)})" for loss, models in losses.items())
        yield (
            f"FGSM, untargeted, on the whole test set; the loss it follows: {told}. ε is the "
            "largest change of a pixel in raw units, where black is 0 and white is 1. Zero "
            "gradients: the largest share over seeds of images whose gradient vanished, which "
            "looks like robustness and is not."
        )
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
