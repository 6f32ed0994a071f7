"""How far ours may lie from a published number: as far as two test sets of that size would differ.

There is such a margin for shares of test images, for how much less often one model errs than
another, and for the difference of two accuracies. Orders of magnitude have a margin of their own.
Nothing else has one, and no number without a margin can be called reproduced.
"""

from __future__ import annotations

import math

from capsrepro.claims import BoundClaim, ValueClaim
from capsrepro.metrics import is_proportion
from capsrepro.report.comparisons import ADVANTAGES, DECADES, REDUCTIONS
from capsrepro.report.statistics import reduction_margin, two_test_sets_margin

DECADES_MARGIN = 0.5
"""In decades. Who writes "2 orders of magnitude" means neither 1 nor 3, so that half-way to these
is as far as the words reach: a factor of 32 to 316."""


def has_margin(claim: ValueClaim | BoundClaim) -> bool:
    """Whether there is a margin, once the size of the test set is known."""
    if claim.metric in REDUCTIONS:
        return _fixed_error(claim) is not None or claim.against_pct is not None
    return claim.metric in {**ADVANTAGES, **DECADES} or is_proportion(claim.metric)


def margin_of(
    claim: ValueClaim | BoundClaim, test_size: int | None, confidence: float
) -> float | None:
    """The margin of a claim: in decades for orders of magnitude, in percentage points otherwise.

    Args:
        claim: What was published.
        test_size: Test images, when known; for what compares two models, those that both were
            tested on.
        confidence: Two-sided, 0 to 1.

    Returns:
        None where there is no margin, or where it needs a test size that is not known.
    """
    if not has_margin(claim):
        return None
    if claim.metric in DECADES:
        return DECADES_MARGIN
    return None if test_size is None else _counted(claim, test_size, confidence)


def _counted(claim: ValueClaim | BoundClaim, test_size: int, confidence: float) -> float:
    """The margin of what was counted on test images."""
    fixed, against = _fixed_error(claim), claim.against_pct
    if fixed is not None:
        return reduction_margin(claim.value, fixed, test_size, math.inf, confidence)
    if claim.metric in REDUCTIONS and against is not None:
        return reduction_margin(claim.value, against, test_size, test_size, confidence)
    if claim.metric in ADVANTAGES:
        # The standard error of a difference is √2 times that of either accuracy. Who says that
        # there is none prints neither, so both are taken to be 50 %, where they vary most, and to
        # be independent: rather too wide, as they are counted on the same images.
        return math.sqrt(2) * two_test_sets_margin(50.0, test_size, confidence)
    return two_test_sets_margin(claim.value, test_size, confidence)


def _fixed_error(claim: ValueClaim | BoundClaim) -> float | None:
    """The published error that ours is compared with too, in %, so that it varies with nothing."""
    if claim.metric not in REDUCTIONS:
        return None
    error = claim.condition.get(f"against_{REDUCTIONS[claim.metric]}")
    return float(error) if isinstance(error, int | float) else None
