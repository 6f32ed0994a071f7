"""The plot of a benchmark: images a second of every variant, or costs along every axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsrepro.benchmarks import Benchmark, Variant
from capsrepro.report.benchmark_rates import images_per_s
from capsrepro.report.benchmark_scaling import Growth, growths
from capsrepro.report.benchmark_table import AXES, heading
from capsrepro.report.figures import canvas
from capsrepro.report.figures.panels import add_legend, new_panels
from capsrepro.report.formatting import rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"float32": canvas.BLUE, "tf32": canvas.GREEN, "bf16": canvas.RED}
_NAIVE = "#666666"


def draw_benchmark(benchmark: Benchmark) -> Figure:
    """Speeds on a logarithmic axis, or a panel for every axis of growth."""
    found = growths(benchmark)
    return _draw_growths(benchmark, found) if found else _draw_speeds(benchmark)


def _draw_speeds(benchmark: Benchmark) -> Figure:
    models = list(dict.fromkeys(variant.model for variant in benchmark.variants))
    rounds = f"dots: medians of {benchmark.rounds} rounds, lines: from the lowest to the highest"
    lines = ["Training speed", heading(benchmark), f"{rounds}; bars: convolutions and matrices"]
    figure = canvas.new_chart(lines, 7.5, 0.6 + 0.95 * len(models))
    axes = figure.subplots()
    for row, model in enumerate(models):
        shown = [v for v in benchmark.variants if v.model == model and v.what != "floor"]
        for place, variant in enumerate(shown):
            height = row + 0.8 * ((place + 0.5) / len(shown) - 0.5)
            _draw_variant(axes, variant, height)
            for floor in benchmark.variants:
                same = (floor.model, floor.precision) == (model, variant.precision)
                if same and floor.what == "floor" and variant.what == "step":
                    _draw_floor(axes, floor, height)
    axes.set(xscale="log", xlabel="images/s", ylim=(len(models) - 0.5, -0.5))
    axes.set_yticks(range(len(models)), models)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    low, high = axes.get_xlim()
    # Over more than two decades the numbers between them would stand on one another.
    axes.xaxis.set_minor_formatter("{x:,.0f}" if high < 100 * low else "")
    axes.tick_params(axis="x", which="minor", labelsize=6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=len(once))
    return figure


def _draw_variant(axes: Axes, variant: Variant, height: float) -> None:
    rate = images_per_s(variant)
    if rate is None:
        return
    naive = variant.what == "naive"
    color = _NAIVE if naive else _COLOURS[variant.precision]
    ends = [[rate.median - rate.low], [rate.high - rate.median]]
    label = "naive reference" if naive else variant.precision
    axes.errorbar([rate.median], [height], xerr=ends, fmt="o", color=color, label=label)
    together = f" ({variant.together} runs)" if variant.together > 1 else ""
    axes.annotate(
        rounded(rate.median) + together,
        (rate.median, height),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=6,
        color=color,
    )


def _draw_floor(axes: Axes, floor: Variant, height: float) -> None:
    rate = images_per_s(floor)
    if rate is not None:
        color = _COLOURS[floor.precision]
        axes.plot([rate.median], [height], marker="|", markersize=9, color=color)


def _draw_growths(benchmark: Benchmark, found: list[Growth]) -> Figure:
    cost = "CPU time" if benchmark.machine.kind == "cpu" else "time"
    rounds = f"dots: medians of {benchmark.rounds} rounds, lines: the straight lines nearest"
    lines = ["How the cost of a training step grows", heading(benchmark), rounds]
    figure, panels = new_panels(lines, len(found), legend=0.3)
    for axes, growth in zip(panels, found, strict=True):
        _draw_growth(axes, growth)
        axes.set(
            title=growth.model.split("/")[1],
            xlabel=AXES[growth.axis],
            ylabel=f"{cost} of a step, s",
        )
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    add_legend(figure, panels)
    return figure


def _draw_growth(axes: Axes, growth: Growth) -> None:
    color = _COLOURS[growth.precision]
    medians = [cost.median for cost in growth.costs_s]
    ends = [
        [cost.median - cost.low for cost in growth.costs_s],
        [cost.high - cost.median for cost in growth.costs_s],
    ]
    axes.errorbar(growth.values, medians, yerr=ends, fmt="none", color=color)
    axes.plot(growth.values, medians, "o", color=color, label=growth.precision)
    if growth.fit is not None:
        span = [0, max(growth.values)]
        line = [growth.fit.fixed_s + growth.fit.each_s * x for x in span]
        axes.plot(span, line, "--", color=color, linewidth=0.9, label="straight line")
