"""The table of a benchmark: how fast every variant was, against what it could be."""

from __future__ import annotations

from collections.abc import Iterator

from capsrepro.benchmarks import Benchmark, Variant, What
from capsrepro.report.benchmark_rates import (
    Spread,
    cost_ratio,
    cpu_s_per_image,
    images_per_s,
    peak_share,
    rival,
)
from capsrepro.report.benchmark_scaling import Growth, growths
from capsrepro.report.formatting import plain, ranged, rounded, tenths
from capsrepro.report.rendering import Cell, Column, Scalar, Table
from capsrepro.report.tables import NOTHING

WHAT: dict[What, str] = {"step": "training step", "naive": "naive reference", "floor": "floor"}

AXES = {
    "batch_size": "images of a step",
    "primary_types": "types of primary capsules",
    "routing_iterations": "routing iterations",
    "classes": "classes",
}

_COLUMNS = (
    Column("model", "model"),
    Column("what", "what"),
    Column("precision", "precision"),
    Column("batch_size", "batch", number=True),
    Column("images_per_s", "images/s", number=True),
    Column("cpu_s_per_image", "CPU ms per image", number=True),
    Column("peak_memory_mib", "peak MiB", number=True),
    Column("peak_share", "of matrix peak %", number=True),
    Column("to_floor", "× own floor", number=True),
    Column("to_float32_floor", "× float32 floor", number=True),
    Column("speed_up", "× naive speed", number=True),
)


def benchmark_table(benchmark: Benchmark) -> Table:
    """What was measured: models, or how costs grow."""
    found = growths(benchmark)
    return _scaling_table(benchmark, found) if found else _speed_table(benchmark)


def heading(benchmark: Benchmark) -> str:
    """The machine: its device, threads and torch."""
    machine = benchmark.machine
    threads = f", {machine.threads} thread{'s' * (machine.threads > 1)}"
    return f"{machine.device}{threads}, torch {machine.versions.get('torch')}"


def _speed_table(benchmark: Benchmark) -> Table:
    rows = tuple(_row(benchmark, variant) for variant in benchmark.variants)
    title = f"Training speed: {heading(benchmark)}"
    return Table("benchmark", title, _COLUMNS, rows, tuple(_speed_notes(benchmark)))


def _row(benchmark: Benchmark, variant: Variant) -> tuple[Cell, ...]:
    own = rival(benchmark, variant, "floor", variant.precision)
    plain_floor = rival(benchmark, variant, "floor")
    naive = rival(benchmark, variant, "naive")
    is_floor = variant.what == "floor"
    speed_up = cost_ratio(benchmark, naive, variant) if naive and variant is not naive else None
    memory, share = variant.peak_memory_mib, peak_share(benchmark, variant)
    return (
        Cell(variant.model, variant.model),
        _what_cell(variant),
        Cell(variant.precision, variant.precision),
        Cell(plain(variant.batch_size), variant.batch_size),
        _rate_cell(variant),
        _spread_cell(cpu_s_per_image(variant), 1000),
        NOTHING if memory is None else Cell(rounded(memory), memory),
        NOTHING if share is None or is_floor else Cell(tenths(100 * share), share),
        NOTHING if is_floor else _spread_cell(cost_ratio(benchmark, variant, own)),
        NOTHING
        if variant is plain_floor
        else _spread_cell(cost_ratio(benchmark, variant, plain_floor)),
        NOTHING if is_floor else _spread_cell(speed_up),
    )


def _what_cell(variant: Variant) -> Cell:
    if variant.together == 1:
        return Cell(WHAT[variant.what], variant.what)
    text = f"{WHAT[variant.what]}, {variant.together} runs at a time"
    return Cell(text, f"{variant.what}-{variant.together}")


def _rate_cell(variant: Variant) -> Cell:
    """Images per second, or why there are none, or how many turns there were before it failed."""
    rate = images_per_s(variant)
    cell = _spread_cell(rate)
    if variant.failure is None:
        return cell
    before = f"{cell.text}; then " if rate else ""
    return Cell(f"{before}failed: {variant.failure}", {**_values(rate), "failure": variant.failure})


def _spread_cell(spread: Spread | None, factor: float = 1) -> Cell:
    """Median and range; people read it times the factor, programs do not."""
    if spread is None:
        return NOTHING
    text = ranged(spread.median * factor, spread.low * factor, spread.high * factor)
    return Cell(text, _values(spread))


def _values(spread: Spread | None) -> dict[str, Scalar]:
    if spread is None:
        return {}
    return {"median": spread.median, "low": spread.low, "high": spread.high, "n": spread.n}


def _speed_notes(benchmark: Benchmark) -> Iterator[str]:
    cost = "CPU seconds" if benchmark.machine.kind == "cpu" else "seconds"
    yield (
        f"Medians over {benchmark.rounds} rounds, in brackets the lowest and the highest. In every "
        "round each variant makes its steps in a process of its own while the others wait. "
        "Images are random bytes, augmented as in training."
    )
    yield (
        f"Ratios are of {cost}, taken round by round. Floor: the convolutions and fully connected "
        "layers of the step alone, forward and the gradients needed, as fast as torch has them; "
        "a step that is quicker has products of its own. Matrix capsules have next to none of "
        "them, so theirs says nothing."
    )
    yield (
        "Naive reference: votes written out, eager, float32, torch's own Adam and memory handling; "
        "it is not asked for the same bits every time, as the training step is."
    )
    peaks = ", ".join(
        f"{precision} {rounded(max(speeds) / 1e12)}"
        for precision, speeds in benchmark.matrix_flop_per_s.items()
    )
    yield (
        f"Matrix peak: the best product of a few sizes and layouts here, in TFLOP/s: {peaks}. "
        "Its share counts the products of a step with votes written out and direct convolutions: "
        "it is above 100 where fewer do."
    )
    yield f"Peak memory: {_what_memory(benchmark)}."
    yield _origin(benchmark)


def _what_memory(benchmark: Benchmark) -> str:
    if benchmark.machine.kind == "cuda":
        return "of the GPU, as torch allocated it"
    before = [x.imports_mib for x in benchmark.variants if x.imports_mib is not None]
    if not before:
        return "of the whole process"
    return (
        f"of the whole process, of which {max(before):,.0f} MiB were there before anything was "
        "built: mostly pages of libraries, which the kernel may take back"
    )


def _origin(benchmark: Benchmark) -> str:
    code = benchmark.code
    commit = (code.git_commit or "no commit")[:10] + (" with changes" if code.git_dirty else "")
    return f"Measured {benchmark.created_at} at {commit}, on {benchmark.machine.platform}."


def _scaling_table(benchmark: Benchmark, found: list[Growth]) -> Table:
    columns = (
        Column("model", "model"),
        Column("axis", "what grows"),
        Column("precision", "precision"),
        Column("batch_size", "batch", number=True),
        Column("costs_s", "ms per step"),
        Column("fixed", "fixed ms", number=True),
        Column("each", "ms each", number=True),
        Column("off_line", "off the line %", number=True),
        Column("power", "power", number=True),
    )
    rows = tuple(_growth_row(growth) for growth in found)
    cost = "CPU time" if benchmark.machine.kind == "cpu" else "time"
    notes = (
        f"Cost is {cost} of a training step, median of {benchmark.rounds} rounds in which the "
        "points of an axis take turns.",
        "Fixed and each: the straight line a + b·x nearest to the points; off the line: the "
        "largest distance of a point from it. Power: p of the best a + b·x^p.",
        "All four should be linear: every image, type of capsules, iteration and class costs as "
        "much as the one before, beside a fixed part.",
        _origin(benchmark),
    )
    title = f"How the cost of a training step grows: {heading(benchmark)}"
    return Table("benchmark-scaling", title, columns, rows, notes)


def _growth_row(growth: Growth) -> tuple[Cell, ...]:
    costs = dict(zip(growth.values, growth.costs_s, strict=True))
    texts = [f"{plain(value)}: {rounded(1000 * cost.median)}" for value, cost in costs.items()]
    texts += [f"{plain(value)}: failed: {why}" for value, why in growth.failures.items()]
    values: dict[str, Scalar] = {str(value): cost.median for value, cost in costs.items()}
    fit, batch = growth.fit, growth.batch_size
    fitted = (
        (
            Cell(rounded(1000 * fit.fixed_s), fit.fixed_s),
            Cell(rounded(1000 * fit.each_s), fit.each_s),
            Cell(tenths(100 * fit.off_line), fit.off_line),
            Cell(rounded(fit.power), fit.power),
        )
        if fit
        else (NOTHING,) * 4
    )
    return (
        Cell(growth.model, growth.model),
        Cell(AXES[growth.axis], growth.axis),
        Cell(growth.precision, growth.precision),
        NOTHING if batch is None else Cell(plain(batch), batch),
        Cell(", ".join(texts), values),
        *fitted,
    )
