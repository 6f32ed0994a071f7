"""The rule for orderings: one-sided Welch tests over seeds, corrected by Holm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from capsrepro.claims import OrderingClaim
from capsrepro.metrics import METRICS
from capsrepro.report.statistics import Summary, summarise, welch_p
from capsrepro.report.verdicts import (
    Evidence,
    Verdict,
    complete,
    in_pp,
    incomparable,
    insufficient,
)
from capsrepro.schema.params import Margins


@dataclass(frozen=True)
class Comparison:
    """One-sided tests of two models over their seeds.

    Attributes:
        p: That the claimed order holds; None where no test is allowed or possible.
        p_reverse: That the opposite order holds.
        advantage: Of the model claimed to be better, in the metric's unit; positive as claimed.
        advantage_pct: The same as a share of the other model's mean, in %.
        ours: Summary of the model claimed to be better.
        barred: The verdict, when it needs no test.
    """

    p: float | None
    p_reverse: float | None
    advantage: float
    advantage_pct: float
    ours: Summary
    barred: Verdict | None


def compare(
    claim: OrderingClaim, better: Evidence, worse: Evidence, margins: Margins
) -> Comparison:
    """Test an ordering; Holm's correction is left to `ordering_verdict`."""
    ours = summarise(better.values, margins.confidence)
    other = summarise(worse.values, margins.confidence)
    known = METRICS.get(claim.metric)
    first, second = better.values, worse.values
    advantage = other.mean - ours.mean
    if known is not None and known.better == "higher":
        first, second, advantage = second, first, -advantage
    barred = (
        incomparable(better)
        or incomparable(worse)
        or insufficient(better, margins)
        or insufficient(worse, margins)
    )
    if known is None or known.better == "neither":
        barred = barred or Verdict("inconclusive", "no direction of this metric is better")
    p = p_reverse = None
    if barred is None:
        p, p_reverse = welch_p(first, second), welch_p(second, first)
        if p is None:
            barred = Verdict("inconclusive", "no spread over seeds on either side, so no test")
    share = 100 * advantage / other.mean if other.mean else 0.0
    return Comparison(p, p_reverse, advantage, share, ours, barred)


def hardest(comparisons: list[Comparison]) -> Comparison:
    """One comparison for an ordering that must hold at every point of a curve.

    Each point's test must succeed on its own, so the largest p stands for all (an
    intersection-union test) and needs no correction over the points.
    """
    least = min(comparisons, key=lambda one: one.advantage)
    barred = next((one.barred for one in comparisons if one.barred is not None), None)
    if barred is not None:
        return replace(least, p=None, p_reverse=None, barred=barred)
    return replace(
        least,
        p=max(one.p for one in comparisons if one.p is not None),
        p_reverse=max(one.p_reverse for one in comparisons if one.p_reverse is not None),
    )


def ordering_verdict(
    claim: OrderingClaim,
    comparison: Comparison,
    p_holm: float | None,
    p_reverse_holm: float | None,
    margins: Margins,
) -> Verdict:
    """Is the claimed order significant, or its opposite, or neither?

    Args:
        claim: The ordering.
        comparison: What `compare` found.
        p_holm: Its `p`, corrected over the orderings judged together.
        p_reverse_holm: Its `p_reverse`, likewise.
        margins: The level of the test.
    """
    advantage = comparison.advantage
    effect = in_pp(claim.metric, advantage)
    if comparison.barred is not None or p_holm is None or p_reverse_holm is None:
        barred = comparison.barred or Verdict("inconclusive", "no test was possible")
        return complete(barred, comparison.ours, effect)
    numbers = {"p_holm": p_holm, "advantage_pct": comparison.advantage_pct}
    short = advantage < (claim.minimum_effect_pp or -math.inf) or comparison.advantage_pct < (
        claim.minimum_effect_pct or -math.inf
    )
    if p_reverse_holm < margins.ordering_alpha:
        numbers["p_holm"] = p_reverse_holm
        verdict = Verdict("differs (worse)", "the opposite holds, p {p_holm} (Holm)", numbers)
    elif p_holm >= margins.ordering_alpha:
        verdict = Verdict("inconclusive", "not significant, p {p_holm} (Holm)", numbers)
    elif short:
        reason = "better, p {p_holm} (Holm), but by {advantage_pct} %, less than is claimed"
        verdict = Verdict("inconclusive", reason, numbers)
    else:
        verdict = Verdict("reproduced", "significant, p {p_holm} (Holm)", numbers)
    return complete(verdict, comparison.ours, effect)
