"""What may be said from a handful of seeds: summaries, intervals, one-sided tests, margins.

Everything here agrees with scipy.stats (tests/report/test_statistics.py) but imports only
scipy.special, because scipy.stats alone would take longer to import than a report to write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The standard library's, not this module: imports are absolute. Its mean and stdev are exact, so
# that three equal seeds have a spread of exactly 0 and are not tested against rounding noise.
from statistics import NormalDist, mean, stdev

from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Summary:
    """One quantity over the seeds.

    Attributes:
        mean: Arithmetic mean, in the unit of the values.
        sd: Standard deviation over the seeds (ddof 1); None for a single one.
        n: How many seeds.
        interval: Student t interval of the mean; None for a single seed.
    """

    mean: float
    sd: float | None
    n: int
    interval: tuple[float, float] | None


def summarise(values: Sequence[float], confidence: float) -> Summary:
    """Mean, SD and Student t interval of at least one value.

    A BCa bootstrap looks freer of assumptions, but at n = 5 it covers 82 % where 95 % is asked.

    Args:
        values: One per seed.
        confidence: Coverage of the interval, 0 to 1.
    """
    n = len(values)
    centre = float(mean(values))
    if n < 2:
        return Summary(centre, None, n, None)
    sd = float(stdev(values))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return Summary(centre, sd, n, (centre - half, centre + half))


def welch_p(smaller: Sequence[float], larger: Sequence[float]) -> float | None:
    """One-sided p of Welch's t-test that the mean of `smaller` is below that of `larger`.

    None where no test is possible: fewer than two values on a side, or no spread on either.
    """
    compared = _welch(smaller, larger)
    if compared is None:
        return None
    difference, error, freedom = compared
    return float(stdtr(freedom, difference / error))


def welch_interval(
    values: Sequence[float], others: Sequence[float], confidence: float
) -> tuple[float, float] | None:
    """Welch's t interval of how far the mean of `values` lies above that of `others`.

    None where there is none: fewer than two values on a side, or no spread on either.

    Args:
        values: One per seed.
        others: The same of what they are compared with; not paired.
        confidence: Coverage of the interval, 0 to 1.
    """
    compared = _welch(values, others)
    if compared is None:
        return None
    difference, error, freedom = compared
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return difference - half, difference + half


def _welch(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float] | None:
    """Difference of the means, its standard error above 0, and degrees of freedom."""
    if min(len(values), len(others)) < 2:
        return None
    a, b = stdev(values) ** 2 / len(values), stdev(others) ** 2 / len(others)
    if a + b == 0:
        return None
    # In shares of the sum, because squares of tiny variances would underflow to 0/0.
    share_a, share_b = a / (a + b), b / (a + b)
    freedom = 1 / (share_a**2 / (len(values) - 1) + share_b**2 / (len(others) - 1))
    return float(mean(values) - mean(others)), math.sqrt(a + b), freedom


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over one family; None (no test made) stays None, uncounted."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, i) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        corrected[i] = floor
    return corrected


def binomial_standard_error(p: float, n: float) -> float:
    """Standard error of a proportion `p` (0 to 1) counted on `n` samples; 0 on infinitely many."""
    return math.sqrt(p * (1 - p) / n)


def two_test_sets_margin(error_pct: float, test_size: int, confidence: float) -> float:
    """How far one model's error may differ between two test sets, in percentage points.

    Args:
        error_pct: The error (or accuracy: the margin is the same), 0 to 100 %.
        test_size: Samples in each of the two test sets.
        confidence: Two-sided, 0 to 1; 0.95 gives 1.96·√2·standard error.
    """
    error = binomial_standard_error(error_pct / 100, test_size)
    return 100 * _two_draws(error, confidence)


def reduction_margin(
    reduction_pct: float,
    against_pct: float,
    test_size: int,
    against_size: float,
    confidence: float,
) -> float:
    """How far a reduction of errors may differ between two test sets, in percentage points.

    The reduction is 100 (1 − a / b) for errors a and b. Its standard error is the propagated one of
    first order, 100 / b · √(se_a² + (a / b)² se_b²), with a and b taken as independent; on the same
    images they mostly err together, so that this is rather too wide.

    Args:
        reduction_pct: As printed, at most 100 %.
        against_pct: b, above 0 %; a follows from it.
        test_size: Samples that a was counted on.
        against_size: The same of b; infinite for a fixed number, which differs between no test
            sets, and then the margin is that of a in units of b.
        confidence: Two-sided, 0 to 1.
    """
    b = against_pct / 100
    left = 1 - reduction_pct / 100
    se_a = binomial_standard_error(left * b, test_size)
    se_b = binomial_standard_error(b, against_size)
    return 100 / b * _two_draws(math.hypot(se_a, left * se_b), confidence)


def _two_draws(standard_error: float, confidence: float) -> float:
    """What two draws of one quantity differ by at most, at this confidence."""
    return NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(2) * standard_error
