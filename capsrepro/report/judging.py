"""Which runs are held against which claim, and which orderings are corrected together.

Runs stand trial for a claim when their protocol is `judged_as` the claim's protocol, their model
`stands_for` its model, and they measured its metric under its condition. The full budget in the
paper's own words comes first, then its authors' code, then short runs: the first gives the
verdict, the others stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from capsrepro.claims import BoundClaim, Claim, OrderingClaim, ValueClaim
from capsrepro.report.comparisons import COMPARED, conditions_of
from capsrepro.report.measurements import Fact, Measurement
from capsrepro.report.orderings import Comparison, compare, hardest, ordering_verdict
from capsrepro.report.statistics import holm
from capsrepro.report.summaries import Group, models_of
from capsrepro.report.verdicts import (
    Evidence,
    Verdict,
    bound_verdict,
    incomparable,
    value_verdict,
)
from capsrepro.schema.params import Margins, Params

_Index = Mapping[str, Sequence[Group]]

# A bound must hold at every point of a curve; the first of these that occurs is the verdict.
_WORST_FIRST = (
    "not comparable",
    "differs (worse)",
    "differs (better)",
    "inconclusive",
    "reproduced",
)


@dataclass(frozen=True)
class Candidate:
    """One group of runs and what it says about a claim.

    Attributes:
        group: The runs; of the better model, for an ordering.
        verdict: What they say.
        setting: What was done to them, e.g. {attack: fgsm, loss: own}; mostly empty.
        against: The runs of the worse model, for an ordering.
        comparison: The tests behind an ordering.
    """

    group: Group
    verdict: Verdict
    setting: Mapping[str, Fact]
    against: Group | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Judgement:
    """One claim, its verdict, and everything that stood trial for it.

    Attributes:
        claim: The claim.
        verdict: Of the first candidate; None when the claim is context and never judged.
        candidates: Best entitled first; empty when nothing was run.
    """

    claim: Claim
    verdict: Verdict | None
    candidates: tuple[Candidate, ...] = ()

    @property
    def status(self) -> str:
        """The verdict in a word or two, or `context`."""
        return "context" if self.verdict is None else self.verdict.status


def judge(claims: Iterable[Claim], groups: Sequence[Group], params: Params) -> list[Judgement]:
    """Hold every claim against the groups; in the order of the claims."""
    index: dict[str, list[Group]] = {}
    for group in groups:
        if group.judged_as is not None:
            index.setdefault(group.judged_as, []).append(group)
    for entitled in index.values():
        entitled.sort(key=_entitlement)
    judgements = [_judge_one(claim, index, params.margins) for claim in claims]
    return _with_orderings(judgements, params.margins)


def _judge_one(claim: Claim, index: _Index, margins: Margins) -> Judgement:
    if not claim.judged:
        return Judgement(claim, None)
    if isinstance(claim, OrderingClaim):
        candidates = tuple(_compared(claim, index, margins))
    else:
        candidates = tuple(_measured(claim, index, margins))
    verdict = candidates[0].verdict if candidates else _not_measured(claim, index)
    return Judgement(claim, verdict, candidates)


def _entitlement(group: Group) -> tuple[bool, bool, bool, float, int]:
    return (
        group.superseded is not None,
        group.budget < 1,
        group.reading != "text",
        -group.budget,
        -len(group.seeds),
    )


def _standing(claim: Claim, model: str, index: _Index) -> list[Group]:
    return [group for group in index.get(claim.protocol, ()) if group.stands_trial(claim, model)]


def _measured(
    claim: ValueClaim | BoundClaim, index: _Index, margins: Margins
) -> Iterator[Candidate]:
    for group in _standing(claim, claim.model, index):
        for points in group.matching(claim.metric, claim.condition):
            evidence = [_evidence(group, point) for point in points]
            if isinstance(claim, BoundClaim):
                verdicts = [bound_verdict(claim, one, margins) for one in evidence]
                verdict = min(verdicts, key=lambda one: _WORST_FIRST.index(one.status))
            elif len(evidence) == 1:
                verdict = value_verdict(claim, evidence[0], margins)
            else:  # a single number says nothing about a curve
                continue
            yield Candidate(group, verdict, points[0].setting)


def _compared(claim: OrderingClaim, index: _Index, margins: Margins) -> Iterator[Candidate]:
    for group in _standing(claim, claim.better, index):
        against = _opponent(group, _standing(claim, claim.worse, index))
        if against is None:
            continue
        theirs = against.matching(claim.metric, claim.condition)
        others = {conditions_of(point): point for points in theirs for point in points}
        for points in group.matching(claim.metric, claim.condition):
            comparisons = [
                compare(claim, _evidence(group, p), _evidence(against, others[where]), margins)
                for p in points
                if (where := conditions_of(p)) in others
            ]
            if comparisons:
                comparison = hardest(comparisons)
                # The verdict waits for Holm's correction over the whole paper.
                verdict = ordering_verdict(claim, comparison, None, None, margins)
                yield Candidate(group, verdict, points[0].setting, against, comparison)


def _opponent(group: Group, others: Sequence[Group]) -> Group | None:
    """Of the same protocol and version; of the same reading where there is one."""
    same: list[Group | None] = [
        other
        for other in others
        if other.seeds and (other.protocol, other.version) == (group.protocol, group.version)
    ]
    alike = (other for other in same if other and other.reading == group.reading)
    return next(alike, same[0] if same else None)


def _evidence(group: Group, measurement: Measurement) -> Evidence:
    counted = COMPARED.get(measurement.metric, measurement.metric)
    return Evidence(
        values=tuple(measurement.values.values()),
        budget=group.budget,
        failed=len(group.failed),
        superseded=group.superseded,
        test_images=group.test_images(measurement.setting, counted),
        members=group.members,
    )


def _with_orderings(judgements: list[Judgement], margins: Margins) -> list[Judgement]:
    """Correct the orderings of one paper together, each reading of it for itself."""
    families: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, judgement in enumerate(judgements):
        for j, candidate in enumerate(judgement.candidates):
            if candidate.comparison is not None:
                family = (judgement.claim.paper, candidate.group.reading)
                families.setdefault(family, []).append((i, j))
    settled: dict[tuple[int, int], Verdict] = {}
    for places in families.values():
        tests = [judgements[i].candidates[j].comparison for i, j in places]
        ps = holm([test.p if test else None for test in tests])
        reverses = holm([test.p_reverse if test else None for test in tests])
        for (i, j), test, p, reverse in zip(places, tests, ps, reverses, strict=True):
            claim = judgements[i].claim
            if test is not None and isinstance(claim, OrderingClaim):
                settled[i, j] = ordering_verdict(claim, test, p, reverse, margins)
    for i in sorted({i for i, _ in settled}):
        candidates = tuple(
            replace(candidate, verdict=settled[i, j])
            for j, candidate in enumerate(judgements[i].candidates)
        )
        judgements[i] = replace(judgements[i], verdict=candidates[0].verdict, candidates=candidates)
    return judgements


def _not_measured(claim: Claim, index: _Index) -> Verdict:
    """What is said when no runs stand trial: what is owed, or why it could not be measured."""
    if claim.unavailable is not None:
        return Verdict("not available", "{what}", {"what": claim.unavailable})
    if claim.protocol not in index:
        return Verdict("not run", f"no protocol is judged as {claim.protocol}")
    trained: list[Group] = []
    for model in models_of(claim):
        groups = _standing(claim, model, index)
        if not groups:
            return Verdict("not run", f"no model stands for {model}")
        absent = next((group.absent for group in groups if group.absent), None)
        if absent is not None:
            return Verdict("not run", absent)
        if not any(group.seeds for group in groups):
            if any(group.failed for group in groups):
                return Verdict("inconclusive", f"every seed of {model} failed")
            return Verdict("not run", f"no finished run of {model}")
        trained.append(next(group for group in groups if group.seeds))
    reason = "not measured under this condition" if claim.condition else "not measured"
    ended = next((end for group in trained if (end := _ended_before(claim, group))), None)
    return ended or Verdict("not run", reason)


def _ended_before(claim: Claim, group: Group) -> Verdict | None:
    """The verdict on training that was over before the moment that a claim is about."""
    asked = {"step": claim.condition.get("step"), "epoch": claim.condition.get("epoch")}
    asked["epoch"] = claim.condition.get("epoch_to", asked["epoch"])
    for unit, moment in asked.items():
        end = group.ended.get(unit)
        if isinstance(moment, int | float) and end is not None and end < moment:
            short = incomparable(Evidence((), group.budget, superseded=group.superseded))
            numbers: dict[str, float | str] = {"unit": unit, "end": end, "moment": moment}
            reason = "training ended at {unit} {end}, the claim is about {unit} {moment}"
            return short or Verdict("not comparable", reason, numbers)
    return None
