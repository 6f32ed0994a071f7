"""The only place where a number becomes text, and a metric a title.

Percentages have two decimals and their SD three, as the papers print them; accuracies under attack
have one; other quantities four significant digits.
"""

from __future__ import annotations

from fractions import Fraction

from capsrepro.metrics import METRICS
from capsrepro.report.rendering import Scalar
from capsrepro.report.statistics import Summary
from capsrepro.report.verdicts import Verdict


def title_of(metric: str) -> str:
    """What people call a metric; one that METRICS does not know keeps its name."""
    return METRICS[metric].title if metric in METRICS else metric


def heading(metric: str) -> str:
    """Title and unit of a metric: test error %."""
    unit = METRICS[metric].unit if metric in METRICS else ""
    return f"{title_of(metric)} {unit}".rstrip()


def plain(value: float) -> str:
    """A number of no particular metric: 10,000, 0.00667, 1.5e-07."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3g}"


def quantity(metric: str, value: float) -> str:
    """A value or mean of a metric, without its unit."""
    if metric == "accuracy_pct":
        return f"{value:.1f}"
    if metric.endswith("_pct"):
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def spread(metric: str, value: float | None) -> str:
    """An SD or the end of an interval of a metric; a dash where one seed has none."""
    if value is None:
        return "–"
    if metric.endswith("_pct") and metric != "accuracy_pct":
        return f"{value:.3f}"
    return quantity(metric, value)


def mean_and_sd(metric: str, summary: Summary) -> str:
    """Such as 0.25 ± 0.005."""
    return f"{quantity(metric, summary.mean)} ± {spread(metric, summary.sd)}"


def mean_sd_and_n(metric: str, summary: Summary) -> str:
    """Such as 0.25 ± 0.005 (n = 3)."""
    return f"{mean_and_sd(metric, summary)} (n = {summary.n})"


def rounded(value: float) -> str:
    """Three significant digits, or a whole number: 0.00523, 45.6, 1,235."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tenths(value: float) -> str:
    """One decimal: 0.0, 12.3."""
    return f"{value:.1f}"


def ranged(median: float, low: float, high: float) -> str:
    """A median and what it lies between: 45.6 (44.9–47)."""
    if low == high:
        return rounded(median)
    return f"{rounded(median)} ({rounded(low)}–{rounded(high)})"


def points(value: float) -> str:
    """Percentage points, with two significant digits at least."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def advantage(value: float) -> str:
    """Signed percentage points."""
    return ("+" if value >= 0 else "−") + points(abs(value)) + " pp"


def percentage(share: float) -> str:
    """A share of one as a percentage: 0.95 is 95 %."""
    return f"{100 * share:g} %"


def epsilon(size: float, unit: str = "raw-pixels") -> str:
    """ε as the papers write it: 8/255 of raw pixels, 0.05 of standardised ones."""
    if unit != "raw-pixels":
        return f"{size:g}"
    grey_levels = Fraction(size * 255).limit_denominator(1000)
    if grey_levels.denominator == 1 and 0 < grey_levels < 255:
        return f"{grey_levels}/255"
    return f"{size:g}"


def explain(verdict: Verdict) -> str:
    """The reason of a verdict with its numbers filled in."""
    texts = {
        name: value if isinstance(value, str) else _named(name, value)
        for name, value in verdict.numbers.items()
    }
    return verdict.reason.format_map(texts)


def _named(name: str, value: float) -> str:
    if name.endswith("_pp"):
        return points(value)
    if name.startswith("p_"):
        return f"= {value:.3f}" if value >= 0.0005 else "< 0.001"
    return quantity(name, value) if name.endswith("_pct") else plain(value)


def summary_values(summary: Summary | None) -> dict[str, Scalar]:
    """A summary for programs, unrounded."""
    if summary is None:
        return {}
    low, high = summary.interval or (None, None)
    return {
        "mean": summary.mean,
        "sd": summary.sd,
        "n": summary.n,
        "low": low,
        "high": high,
    }
