"""Which reading of a paper comes nearer to what the paper printed.

A published value is often trained for in several ways: the network as the text or as the authors'
code has it, and the data by protocols that are all `judged_as` the same one. All that stand trial
for one value with one training budget are rivals, and their distances to the value are compared.

The test: let x and y be how far two means lie above the value. |x| < |y| just when x − y and x + y
have opposite signs, so neither may be 0. Both have the same Welch standard error, and the smaller
of |x − y| and |x + y| is the difference of |x| and |y|. So Welch's test of these distances, each
group mirrored to lie above the value, tests both at once and needs no correction for being two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from capsrepro.claims import Claim, ValueClaim
from capsrepro.metrics import is_proportion
from capsrepro.report.statistics import welch_p
from capsrepro.report.summaries import Group
from capsrepro.report.verdicts import Evidence, Verdict, incomparable, insufficient
from capsrepro.schema.params import Margins, Params

Word = Literal["nearer", "farther", "cannot tell", "one seed", "not comparable", "not run"]


@dataclass(frozen=True)
class Rival:
    """One way to train for a published value, and what came of it.

    Attributes:
        protocol: Its name.
        model: Name of the model.
        reading: `text` or `code`: of the network.
        budget: Share of the full training budget.
        group: Its runs; None when params.yaml has this pair but does not ask for it.
        values: One per seed, in the metric's unit; empty when nothing was measured.
    """

    protocol: str
    model: str
    reading: str
    budget: float
    group: Group | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Contest:
    """A published value and all that stood trial for it with one training budget.

    Attributes:
        claim: The value, in percent.
        budget: Share of the full training budget.
        rivals: Two at least, of two readings or two protocols.
    """

    claim: ValueClaim
    budget: float
    rivals: tuple[Rival, ...]


@dataclass(frozen=True)
class Standing:
    """How one rival came off.

    Attributes:
        word: In short.
        why: What kept it from being compared, where the word alone does not say.
        by_pp: By how much its mean is nearer than the rival's it was decided against, or else than
            that of its closest rival; negative when it is farther. None when not compared.
        p: Of the test that decided, one-sided; None when none did.
    """

    word: Word
    why: Verdict | None = None
    by_pp: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class _Gap:
    """One rival against another: how much nearer, and the p of nearer and of farther."""

    by_pp: float
    p_nearer: float
    p_farther: float


def contests(claims: Iterable[Claim], groups: Sequence[Group], params: Params) -> Iterator[Contest]:
    """Every comparison there is to make, in the order of the claims, the fullest budget first."""
    for claim in claims:
        if not isinstance(claim, ValueClaim) or not claim.judged or claim.reading is not None:
            continue
        if not is_proportion(claim.metric):
            continue
        tried = list(_tried(claim, groups))
        rivals = [*tried, *_untried(claim, tried, params)]
        for budget in sorted({rival.budget for rival in rivals}, reverse=True):
            equal = tuple(rival for rival in rivals if rival.budget == budget)
            if len({(rival.protocol, rival.reading) for rival in equal}) > 1:
                yield Contest(claim, budget, equal)


def standings(contest: Contest, margins: Margins) -> list[Standing]:
    """How each rival came off, in their order."""
    bars = [_barred(rival, margins) for rival in contest.rivals]
    able = [rival for rival, bar in zip(contest.rivals, bars, strict=True) if bar is None]
    return [
        bar
        or _placed(contest.claim, rival, [other for other in able if other is not rival], margins)
        for rival, bar in zip(contest.rivals, bars, strict=True)
    ]


def _tried(claim: ValueClaim, groups: Sequence[Group]) -> Iterator[Rival]:
    """What has records or is asked for."""
    for group in groups:
        names = (group.judged_as, group.stands_for)
        if names != (claim.protocol, claim.model) or group.superseded is not None:
            continue
        found = group.matching(claim.metric, claim.condition)
        # A single number says nothing about a curve.
        values = found[0][0].values.values() if found and len(found[0]) == 1 else ()
        yield Rival(group.protocol, group.model, group.reading, group.budget, group, tuple(values))


def _untried(claim: ValueClaim, tried: Sequence[Rival], params: Params) -> Iterator[Rival]:
    """What params.yaml has without asking for it, where a reading would otherwise be missing.

    Not every such pair: one paper's network on the other reading's data resolves nothing.
    """
    for name, protocol in params.protocols.items():
        if protocol.judged_as != claim.protocol:
            continue
        present = {rival.reading for rival in tried if rival.budget == protocol.budget}
        for model, spec in params.models[protocol.models].items():
            if spec.stands_for == claim.model and spec.reading not in present:
                yield Rival(name, model, spec.reading, protocol.budget, None, ())


def _barred(rival: Rival, margins: Margins) -> Standing | None:
    """What keeps a rival from being compared."""
    group = rival.group
    if group is None or not (group.seeds or group.failed):
        return Standing("not run")
    evidence = Evidence(rival.values, group.budget, failed=len(group.failed), members=group.members)
    verdict = incomparable(evidence)
    if verdict is not None:
        return Standing("not comparable", verdict)
    if not group.seeds:
        return Standing("cannot tell", Verdict("inconclusive", "every seed failed"))
    if not rival.values:
        return Standing("not run", Verdict("not run", "not measured"))
    if len(group.seeds) == 1 and not group.failed:
        return Standing("one seed")
    verdict = insufficient(evidence, margins)
    return None if verdict is None else Standing("cannot tell", verdict)


def _placed(claim: ValueClaim, rival: Rival, others: Sequence[Rival], margins: Margins) -> Standing:
    """Nearer than all others, farther than any, or neither."""
    if not others:
        return Standing("cannot tell", Verdict("inconclusive", "nothing to compare it with"))
    gaps = [_gap(claim, rival.values, other.values) for other in others]
    # Both sides of an interval of this confidence share what it leaves out.
    level = (1 - margins.confidence) / 2
    best = min(gaps, key=lambda gap: gap.p_farther)
    if best.p_farther < level:
        return Standing("farther", None, best.by_pp, best.p_farther)
    worst = max(gaps, key=lambda gap: gap.p_nearer)
    if worst.p_nearer < level:
        return Standing("nearer", None, worst.by_pp, worst.p_nearer)
    return Standing("cannot tell", None, min((gap.by_pp for gap in gaps), key=abs))


def _gap(claim: ValueClaim, ours: Sequence[float], theirs: Sequence[float]) -> _Gap:
    """Compare two distances wherever the number behind the print lies.

    Their difference only falls or only rises as that number moves, so the two ends decide. Without
    spread on either side nothing can be tested, and p is 1.
    """
    by_pp = abs(mean(theirs) - claim.value) - abs(mean(ours) - claim.value)
    blur = _blur(claim)
    ends = [
        (_distances(ours, end), _distances(theirs, end))
        for end in (claim.value - blur, claim.value + blur)
    ]
    nearer = [welch_p(our, their) for our, their in ends]
    farther = [welch_p(their, our) for our, their in ends]
    return _Gap(by_pp, *(max(1.0 if p is None else p for p in ps) for ps in (nearer, farther)))


def _distances(values: Sequence[float], published: float) -> list[float]:
    """To the published number, signed so that their mean is not negative."""
    sign = math.copysign(1, mean(values) - published)
    return [sign * (value - published) for value in values]


def _blur(claim: ValueClaim) -> float:
    """± within which the number behind the print lies: it was read off a figure, or rounded."""
    if claim.reading_error is not None:
        return claim.reading_error
    first = re.search(r"\d[\d,]*(?:\.(\d+))?", claim.verbatim)
    decimals = len(first[1] or "") if first else 0
    return 0.5 / float(10**decimals)
