"""How the cost of a step grows along one axis: a straight line, or a power beside a fixed part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capsrepro.benchmarks import Axis, Benchmark
from capsrepro.report.benchmark_rates import Spread, step_cost_s

_POWERS = np.linspace(0.05, 3, 296)
"""Tried one after another, 0.01 apart."""


@dataclass(frozen=True)
class Growth:
    """Cost along one axis.

    Attributes:
        model: PROTOCOL/MODEL.
        axis: What was varied.
        precision: Of the convolutions.
        batch_size: Images of a step; None where they are what was varied.
        values: To what, rising.
        costs_s: Of a step at each.
        failures: By value, of the points that are missing.
        fit: None with fewer than three points.
    """

    model: str
    axis: Axis
    precision: str
    batch_size: int | None
    values: tuple[int, ...]
    costs_s: tuple[Spread, ...]
    failures: dict[int, str]
    fit: Fit | None


@dataclass(frozen=True)
class Fit:
    """Two ways to describe costs c(x), both by least squares of relative errors.

    Attributes:
        fixed_s: a of the straight line a + b x, at least 0.
        each_s: Its b.
        off_line: Largest |c / (a + b x) − 1|.
        power: p of the curve a' + b' x^p with a' at least 0; of 1 where the line is the best.
    """

    fixed_s: float
    each_s: float
    off_line: float
    power: float


def growths(benchmark: Benchmark) -> list[Growth]:
    """Every axis that was measured, in order."""
    found: dict[tuple[str, Axis], list[tuple[int, int]]] = {}
    for place, variant in enumerate(benchmark.variants):
        if variant.axis is not None and variant.value is not None:
            found.setdefault((variant.model, variant.axis), []).append((variant.value, place))
    return [_growth(benchmark, *key, sorted(points)) for key, points in found.items()]


def _growth(
    benchmark: Benchmark, model: str, axis: Axis, points: Sequence[tuple[int, int]]
) -> Growth:
    variants = {value: benchmark.variants[place] for value, place in points}
    costs = {value: step_cost_s(benchmark, variant) for value, variant in variants.items()}
    there = {value: cost for value, cost in costs.items() if cost is not None}
    first = next(iter(variants.values()))
    return Growth(
        model,
        axis,
        first.precision,
        None if axis == "batch_size" else first.batch_size,
        tuple(there),
        tuple(there.values()),
        {value: v.failure for value, v in variants.items() if v.failure is not None},
        fit_costs(list(there), [cost.median for cost in there.values()]),
    )


def fit_costs(values: Sequence[float], costs_s: Sequence[float]) -> Fit | None:
    """Describe costs at three values or more; None of fewer."""
    if len(values) < 3:
        return None
    x, c = np.asarray(values, float), np.asarray(costs_s, float)
    fixed_s, each_s, _ = _line(x, c)
    errors = [_line(x**power, c)[2] for power in _POWERS]
    line = fixed_s + each_s * x
    return Fit(
        fixed_s,
        each_s,
        float(np.abs(c / line - 1).max()),
        float(_POWERS[int(np.argmin(errors))]),
    )


def _line(x: NDArray[np.float64], c: NDArray[np.float64]) -> tuple[float, float, float]:
    """The a ≥ 0 and b of a + b x, and the sum of squares of its relative errors."""
    sides = np.stack([1 / c, x / c], 1)
    (a, b), *_ = np.linalg.lstsq(sides, np.ones_like(c), rcond=None)
    if a < 0:
        a = 0.0
        b = float((x / c).sum() / (x / c).dot(x / c))
    error = float(np.square((a + b * x) / c - 1).sum())
    return float(a), float(b), error
