"""Golden tables of made-up benchmarks, and that the plot shows the same numbers.

After a deliberate change: `UPDATE_GOLDEN=1 pytest tests/report/test_benchmark_table.py`, then read
the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmark_files import benchmark, scaling, variant
from hypothesis import given
from hypothesis import strategies as st

from capsrepro.report.benchmark_rates import cost_ratio, images_per_s, peak_share
from capsrepro.report.benchmark_scaling import fit_costs
from capsrepro.report.benchmark_table import benchmark_table
from capsrepro.report.figures.benchmark import draw_benchmark
from capsrepro.report.figures.canvas import house_style, write_figure
from capsrepro.report.formatting import ranged, rounded
from capsrepro.report.rendering import render

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("form", ["md", "csv"])
@pytest.mark.parametrize(("name", "make"), [("benchmark", benchmark), ("scaling", scaling)])
def test_golden(name, make, form):
    path = GOLDEN / f"{name}.{form}"
    text = render([benchmark_table(make())], form)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_ratios_are_taken_round_by_round():
    made = benchmark()
    step, reduced, naive, floor, *_ = made.variants
    ratio = cost_ratio(made, naive, step)
    # Of the medians it would be 4.4; the slow round is slow for both.
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high, ratio.n) == (4.0, 4.0, 4.4, 3)
    assert cost_ratio(made, step, None) is None
    assert images_per_s(step).median == 1000
    assert cost_ratio(made, reduced, floor).median == 1


def test_cost_is_cpu_time_on_a_cpu():
    lazy = variant("step", "float32", 1.0)
    busy = lazy.model_copy(update={"turns": (lazy.turns[0].model_copy(update={"cpu_s": 2.0}),)})
    for kind, ratio in (("cpu", 4.0), ("cuda", 1.0)):
        assert cost_ratio(benchmark(kind, [lazy, busy]), busy, lazy).median == ratio


def test_memory_tells_what_was_there_before_anything_was_built():
    step = variant("step", "float32", 1.0, peak_memory_mib=1300.0)
    for made, told in (
        (benchmark("cuda", [step]), "of the GPU, as torch allocated it."),
        (benchmark("cpu", [step]), "of the whole process."),
        (
            benchmark("cpu", [step.model_copy(update={"imports_mib": x}) for x in (512.4, 530.6)]),
            "of the whole process, of which 531 MiB were there",
        ),
    ):
        (note,) = (x for x in benchmark_table(made).notes if x.startswith("Peak memory"))
        assert note.startswith(f"Peak memory: {told}")


def test_share_of_the_peak():
    made = benchmark()
    # 1,000 images/s of 10 GFLOP on 50 TFLOP/s, and twice as many on 500.
    assert peak_share(made, made.variants[0]) == pytest.approx(0.2)
    assert peak_share(made, made.variants[1]) == pytest.approx(0.04)
    assert peak_share(made, made.variants[-1]) is None


@given(
    fixed=st.floats(0, 10), each=st.floats(0.01, 10), power=st.sampled_from([0.5, 1.0, 1.5, 2.0])
)
def test_growth_is_found_again(fixed, each, power):
    x = [8, 16, 32, 64, 128]
    fit = fit_costs(x, [fixed + each * n**power for n in x])
    assert fit is not None
    assert fit.power == pytest.approx(power, abs=0.02)
    if power == 1:
        assert fit.off_line < 1e-6
        assert (fit.fixed_s, fit.each_s) == (
            pytest.approx(fixed, abs=1e-6),
            pytest.approx(each, rel=1e-6),
        )


def test_what_shrinks_has_no_negative_fixed_part():
    fit = fit_costs([1, 2, 4], [1.0, 4.0, 16.0])
    assert fit is not None
    assert fit.fixed_s == 0
    assert fit.off_line > 0.3
    assert fit.power == pytest.approx(2, abs=0.01)
    assert fit_costs([1, 2], [1.0, 2.0]) is None


def test_numbers_as_text():
    texts = [rounded(x) for x in (0.005234, 45.64, 99.96, 100.4, 999.7, 1234.5)]
    assert texts == ["0.00523", "45.6", "100", "100", "1,000", "1,234"]
    assert ranged(4, 4, 4.4) == "4 (4–4.4)"
    assert ranged(4, 4, 4) == "4"


def test_the_plot_shows_the_medians():
    with house_style():
        (axes,) = draw_benchmark(benchmark()).axes
    assert [text.get_text() for text in axes.texts] == ["1,000", "2,000", "227"]
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "mnist/capsnet-r3-recon",
        "mnist/cnn-baseline",
    ]


def test_scaling_has_a_panel_an_axis(tmp_path):
    with house_style():
        figure = draw_benchmark(scaling())
        first, second = (axes for axes in figure.axes if axes.axison)
        paths = write_figure(figure, tmp_path, "scaling")
    assert first.get_xlabel() == "images of a step"
    (line,) = [line for line in first.get_lines() if line.get_label() == "straight line"]
    assert line.get_ydata() == pytest.approx([0.1, 0.356])
    assert second.get_xlabel() == "classes"
    assert all(path.stat().st_size > 1000 for path in paths)
