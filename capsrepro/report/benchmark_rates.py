"""What follows from the turns of a benchmark: rates, shares and ratios, each over the rounds.

The cost of a step is what is compared: CPU seconds on a CPU, where other work may hold a core,
and seconds on a GPU. Ratios are taken round by round, so that what slowed one slowed the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from capsrepro.benchmarks import Benchmark, Turn, Variant, What


@dataclass(frozen=True)
class Spread:
    """One quantity over the rounds: median, lowest, highest, and how many rounds."""

    median: float
    low: float
    high: float
    n: int


def spread_of(values: Sequence[float]) -> Spread | None:
    """None without any."""
    return Spread(median(values), min(values), max(values), len(values)) if values else None


def images_per_s(variant: Variant) -> Spread | None:
    """Images that a variant trains on in a second."""
    return spread_of([turn.steps * variant.batch_size / turn.wall_s for turn in variant.turns])


def cpu_s_per_image(variant: Variant) -> Spread | None:
    """CPU time of an image, of all threads."""
    return spread_of([turn.cpu_s / turn.steps / variant.batch_size for turn in variant.turns])


def step_cost_s(benchmark: Benchmark, variant: Variant) -> Spread | None:
    """Cost of a step."""
    return spread_of([_cost_s(benchmark, turn) for turn in variant.turns])


def cost_ratio(benchmark: Benchmark, variant: Variant, other: Variant | None) -> Spread | None:
    """Cost of a step of one over that of the other, round by round; None without the other."""
    pairs = zip(variant.turns, other.turns if other else (), strict=False)
    return spread_of([_cost_s(benchmark, ours) / _cost_s(benchmark, its) for ours, its in pairs])


def peak_share(benchmark: Benchmark, variant: Variant) -> float | None:
    """Share of the best matrix product that its median step keeps up, between 0 and 1.

    None where either was not measured.
    """
    flop, speeds = benchmark.flop_per_image, benchmark.matrix_flop_per_s
    rate, peaks = images_per_s(variant), speeds.get(variant.precision)
    if rate is None or not peaks or variant.model not in flop:
        return None
    return rate.median * flop[variant.model] / max(peaks)


def rival(
    benchmark: Benchmark, variant: Variant, what: What, precision: str = "float32"
) -> Variant | None:
    """The variant of the same model and batch of another kind; None when there is none."""
    return next(
        (
            other
            for other in benchmark.variants
            if (other.model, other.batch_size) == (variant.model, variant.batch_size)
            and (other.what, other.precision, other.axis) == (what, precision, None)
        ),
        None,
    )


def _cost_s(benchmark: Benchmark, turn: Turn) -> float:
    seconds = turn.cpu_s if benchmark.machine.kind == "cpu" else turn.wall_s
    return seconds / turn.steps
