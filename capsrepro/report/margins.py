"""How far ours may lie from a published number: as far as two test sets of that size would differ.

There is such a margin for shares of test images, and for how much less often one model errs than
another. Nothing else has one, and no number without a margin can be called reproduced.
"""

from __future__ import annotations

import math

from capsrepro.claims import BoundClaim, ValueClaim
from capsrepro.metrics import is_proportion
from capsrepro.report.comparisons import REDUCTIONS
from capsrepro.report.statistics import reduction_margin, two_test_sets_margin


def has_margin(claim: ValueClaim | BoundClaim) -> bool:
    """Whether the size of the test set is all that is missing for a margin."""
    if claim.metric in REDUCTIONS:
        return _fixed_error(claim) is not None or claim.against_pct is not None
    return is_proportion(claim.metric)


def margin_pp(claim: ValueClaim | BoundClaim, test_size: int, confidence: float) -> float:
    """The margin of a claim that has one, in percentage points.

    Args:
        claim: What was published.
        test_size: Test images; for a reduction, those that both errors were counted on.
        confidence: Two-sided, 0 to 1.
    """
    fixed, against = _fixed_error(claim), claim.against_pct
    if fixed is not None:
        return reduction_margin(claim.value, fixed, test_size, math.inf, confidence)
    if claim.metric in REDUCTIONS and against is not None:
        return reduction_margin(claim.value, against, test_size, test_size, confidence)
    return two_test_sets_margin(claim.value, test_size, confidence)


def _fixed_error(claim: ValueClaim | BoundClaim) -> float | None:
    """The published error that ours is compared with too, in %, so that it varies with nothing."""
    if claim.metric not in REDUCTIONS:
        return None
    error = claim.condition.get(f"against_{REDUCTIONS[claim.metric]}")
    return float(error) if isinstance(error, int | float) else None
