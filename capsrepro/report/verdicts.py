"""The rules: what our seeds allow to be said about one claim (design.md §11).

Pure functions of a claim, what was measured, and the margins of params.yaml, fixed before any
result was seen. Which runs a claim is held against is decided in judging.py.

The reasons are templates: their numbers stand beside them, and tables.py alone formats numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from capsrepro.claims import BoundClaim, ValueClaim
from capsrepro.metrics import METRICS
from capsrepro.report.comparisons import DECADES
from capsrepro.report.margins import has_margin, margin_of
from capsrepro.report.statistics import Summary, summarise
from capsrepro.schema.params import Margins

FACTS = frozenset(
    {
        "capsules_per_layer",
        "overlap_pct",
        "parameter_ratio",
        "parameters",
        "test_size",
        "train_size",
    }
)
"""What a network or a data set is made of: neither seeds nor training decide any of these."""

Status = Literal[
    "reproduced",
    "differs (better)",
    "differs (worse)",
    "inconclusive",
    "not comparable",
    "not run",
    "not available",
]


@dataclass(frozen=True)
class Verdict:
    """What is said about a claim, and why.

    Attributes:
        status: One of seven.
        reason: A sentence with {names} of `numbers`.
        numbers: The figures of the reason.
        ours: Our summary in the metric's unit; of the better model, for an ordering.
        effect_pp: Percentage points, for metrics in %: ours minus published, or for an ordering
            the advantage of the model that is claimed to be better.
    """

    status: Status
    reason: str
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    ours: Summary | None = None
    effect_pp: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What one group of runs measured for one claim.

    Attributes:
        values: One per seed, in the metric's unit.
        budget: Share of the full training budget.
        failed: How many other seeds ended without a result.
        superseded: Why params.yaml no longer asks for these runs; None when it does.
        test_images: On how many images each value was measured, when known.
        members: How many seeds vote together for each value; 1 for single models.
    """

    values: tuple[float, ...]
    budget: float = 1.0
    failed: int = 0
    superseded: str | None = None
    test_images: int | None = None
    members: int = 1


def is_fact(metric: str) -> bool:
    """Whether the metric is no result but a property of the model, such as its parameters."""
    return metric in FACTS


def value_verdict(claim: ValueClaim, evidence: Evidence, margins: Margins) -> Verdict:
    """Is the published number ours too?"""
    if is_fact(claim.metric):
        return _fact_verdict(claim, evidence, margins)
    ours = summarise(evidence.values, margins.confidence)
    effect = in_pp(claim.metric, ours.mean - claim.value)
    size = claim.test_size or evidence.test_images
    margin = margin_of(claim, size, margins.confidence)
    barred = (
        incomparable(evidence)
        or _other_test_set(claim.test_size, evidence.test_images)
        or insufficient(evidence, margins)
        or _without_margin(claim, margin)
    )
    if barred is not None or ours.interval is None or margin is None:
        return complete(barred or Verdict("inconclusive", "no interval"), ours, effect)
    # The number behind a digitised figure may lie anywhere within its reading error; a verdict
    # must hold wherever it lies.
    blur = claim.reading_error or 0.0
    low, high = ours.interval
    told, numbers = _told(claim.metric, margin)
    numbers["blur_pp"] = blur
    told += " (read off a figure to ± {blur_pp} pp)" if blur else ""
    if claim.value + blur - margin <= low and high <= claim.value - blur + margin:
        verdict = Verdict("reproduced", "whole interval within " + told, numbers)
    elif high < claim.value - blur - margin or low > claim.value + blur + margin:
        status = _difference(claim.metric, higher=low > claim.value)
        verdict = Verdict(status, "whole interval outside " + told, numbers)
    else:
        reason = "interval neither wholly within nor wholly outside " + told
        verdict = Verdict("inconclusive", reason, numbers)
    return complete(verdict, ours, effect)


def bound_verdict(claim: BoundClaim, evidence: Evidence, margins: Margins) -> Verdict:
    """Does the whole interval keep to the limit?"""
    ours = summarise(evidence.values, margins.confidence)
    effect = in_pp(claim.metric, ours.mean - claim.value)
    interval, barred = ours.interval, None
    if is_fact(claim.metric):
        interval = (min(evidence.values), max(evidence.values))
    else:
        barred = incomparable(evidence) or insufficient(evidence, margins)
    margin = None
    if claim.relation == "~":
        margin = margin_of(claim, evidence.test_images, margins.confidence)
        barred = barred or _without_margin(claim, margin)
    if barred is not None or interval is None:
        return complete(barred or Verdict("inconclusive", "no interval"), ours, effect)
    told, numbers = ("", {}) if margin is None else _told(claim.metric, margin)
    within = f" ({told})" if told else ""
    kept = [_keeps(end, claim, margin or 0.0) for end in interval]
    if all(kept):
        verdict = Verdict("reproduced", "whole interval satisfies the bound" + within, numbers)
    elif not any(kept) and not interval[0] < claim.value < interval[1]:
        higher = claim.relation.startswith("<") or interval[0] > claim.value
        reason = "whole interval violates the bound" + within
        verdict = Verdict(_difference(claim.metric, higher), reason, numbers)
    else:
        reason = "interval lies on both sides of the bound" + within
        verdict = Verdict("inconclusive", reason, numbers)
    return complete(verdict, ours, effect)


def _fact_verdict(claim: ValueClaim, evidence: Evidence, margins: Margins) -> Verdict:
    """Rounded or cut off as printed; neither seeds nor budget change what a model is made of."""
    ours = summarise(evidence.values, margins.confidence)
    step = claim.last_place or _printed_step(claim)
    if len(set(evidence.values)) > 1:
        verdict = Verdict("inconclusive", "our own runs disagree")
    elif abs(ours.mean - claim.value) <= step / 2:
        verdict = Verdict("reproduced", "equal to the printed precision")
    elif claim.value <= ours.mean < claim.value + step:
        verdict = Verdict("reproduced", "equal when cut off to the printed precision")
    else:
        reason = "neither rounds nor is cut off to the printed figure"
        verdict = Verdict("differs (worse)", reason)
    return complete(verdict, ours, None)


def _printed_step(claim: ValueClaim) -> float:
    """One unit in the last printed place: 100,000 for 6.8M."""
    match = re.search(r"\d[\d,]*(?:\.(\d+))?\s?([MK]\b)?", claim.verbatim)
    decimals, suffix = (match[1] or "", match[2]) if match else ("", None)
    scale = {"M": 1e6, "K": 1e3}.get(suffix or "", 1.0)
    return float(scale / 10 ** len(decimals))


def incomparable(evidence: Evidence) -> Verdict | None:
    """The verdict on runs that another training budget or protocol keeps from any other."""
    if evidence.superseded is not None:
        return Verdict("not comparable", "{why}", {"why": evidence.superseded})
    if not math.isclose(evidence.budget, 1.0):
        return Verdict("not comparable", "budget {budget} of 1", {"budget": evidence.budget})
    return None


def _other_test_set(published: int | None, ours: int | None) -> Verdict | None:
    if published is None or ours is None or published == ours:
        return None
    numbers = {"ours_images": ours, "published_images": published}
    reason = "tested on {ours_images} images, the paper on {published_images}"
    return Verdict("not comparable", reason, numbers)


def insufficient(evidence: Evidence, margins: Margins) -> Verdict | None:
    """The verdict on too few seeds, on seeds of which some failed, or on a single ensemble."""
    if evidence.failed:
        # The mean of the survivors is not the mean of the method.
        return Verdict("inconclusive", "{failed} of its seeds failed", {"failed": evidence.failed})
    if len(evidence.values) == 1 < evidence.members:
        numbers = {"members": evidence.members}
        return Verdict("inconclusive", "one ensemble of {members} seeds has no spread", numbers)
    if len(evidence.values) < margins.minimum_seeds:
        numbers = {"seeds": len(evidence.values), "needed": margins.minimum_seeds}
        return Verdict("inconclusive", "{seeds} of at least {needed} seeds", numbers)
    return None


def _without_margin(claim: ValueClaim | BoundClaim, margin: float | None) -> Verdict | None:
    if margin is not None:
        return None
    if not has_margin(claim):
        return Verdict("inconclusive", "no margin is fixed for this metric")
    return Verdict("inconclusive", "no margin, because the size of the test set is unknown")


def _told(metric: str, margin: float) -> tuple[str, dict[str, float | str]]:
    """The margin in words and in numbers."""
    if metric in DECADES:
        return "± {margin} decades", {"margin": margin}
    return "± {margin_pp} pp", {"margin_pp": margin}


def _keeps(value: float, claim: BoundClaim, margin: float) -> bool:
    limit = claim.value
    return {
        ">=": value >= limit,
        "<=": value <= limit,
        ">": value > limit,
        "<": value < limit,
        "~": abs(value - limit) <= margin,
    }[claim.relation]


def _difference(metric: str, higher: bool) -> Status:
    """A wrong fact is never an improvement."""
    better = METRICS[metric].better if metric in METRICS else "neither"
    improved = better == ("higher" if higher else "lower")
    return "differs (better)" if improved else "differs (worse)"


def in_pp(metric: str, difference: float) -> float | None:
    """The difference, if percentage points are what the metric's differences are in."""
    percent = metric in METRICS and METRICS[metric].unit in ("%", "pp")
    return difference if percent else None


def complete(verdict: Verdict, ours: Summary, effect_pp: float | None) -> Verdict:
    """The same verdict with what we measured beside it."""
    return replace(verdict, ours=ours, effect_pp=effect_pp)
