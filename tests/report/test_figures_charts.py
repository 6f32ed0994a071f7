"""Figures made of lines: whose numbers they are, and which published values lie over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from figure_files import ROOT, Shelf, figure_params, heading
from matplotlib.axes import Axes
from scipy.stats import binomtest

from capsrepro.claims import ValueClaim, load_claims
from capsrepro.config import load_params
from capsrepro.errors import CapsreproError
from capsrepro.records import Record
from capsrepro.report.figures.archive import NothingToDrawError
from capsrepro.report.figures.losses import loss_curve, mean_curve
from capsrepro.report.figures.overlap import error_and_interval, wilson_interval
from capsrepro.report.figures.routing import epochs_of, probed_iterations

CHANGES = ("logit_change", "agreement_change", "coupling_change")
CURVES = {
    "iteration": [1.0, 2.0, 3.0, 4.0],
    "logit_change": [0.05, 0.04, 0.03, 0.02],
    "agreement_change": [0.05, 0.004, 0.0003, 0.00002],
    "coupling_change": [0.0, 0.008, 0.0006, 0.0],
    "coupling_entropy_nat": [2.3, 2.2, 2.1, 2.0],
}
PROBED = [
    {"epoch": epoch, "step": 469 * epoch, "train_loss": 0.1}
    | {f"{c}_{n}": 10.0**-n * epoch * (k + 1) for k, c in enumerate(CHANGES) for n in (2, 3, 4)}
    for epoch in (1.0, 2.0)
]


@pytest.fixture
def shelf(tmp_path: Path, run_record: Callable[..., Record]) -> Shelf:
    return Shelf(tmp_path / "results", figure_params(), run_record)


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Points by label; what has no label of its own is left out."""
    return {
        str(line.get_label()): [tuple(map(float, point)) for point in line.get_xydata()]
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def bars(axes: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """Place and both ends of the vertical error bars, by label."""
    return {
        str(container.get_label()): [
            (float(x), float(low), float(high))
            for (x, low), (_, high) in container.lines[2][-1].get_segments()
        ]
        for container in axes.containers
    }


def published(locator: str) -> list[ValueClaim]:
    claims = [c for c in load_claims("sabour2017") if c.locator == locator]
    assert claims
    assert all(isinstance(c, ValueClaim) for c in claims)
    return claims  # type: ignore[return-value]


def expected_bars(claims: list[ValueClaim], places: list[float]) -> list[object]:
    return [
        pytest.approx((place, c.value - c.reading_error, c.value + c.reading_error))
        for c, place in zip(claims, places, strict=True)
        if c.reading_error is not None
    ]


def test_the_end_of_training_is_three_definitions_and_the_published_points(shelf: Shelf) -> None:
    shelf.evaluate(shelf.train("mnist-short/capsnet-r3-recon/seed-0", PROBED), "routing", CURVES)
    axes = shelf.draw("sabour2017-fig-a1").axes[3]
    drawn = lines(axes)
    for label, change in zip(("logit b", "agreement û·v", "coupling c"), CHANGES, strict=True):
        assert drawn[label] == list(zip(CURVES["iteration"], CURVES[change], strict=True))[1:]
    assert axes.get_yscale() == "log"
    claims = published("Fig. A.1 (b)")
    places = [float(c.condition["iteration"]) for c in claims]
    assert places == [2, 3, 5, 7, 10]
    assert bars(axes)["published"] == expected_bars(claims, places)


def test_training_is_one_panel_for_each_definition_on_equal_axes(shelf: Shelf) -> None:
    shelf.evaluate(shelf.train("mnist-short/capsnet-r3-recon/seed-0", PROBED), "routing", CURVES)
    panels = shelf.draw("sabour2017-fig-a1").axes[:3]
    for axes, change in zip(panels, CHANGES, strict=True):
        drawn = lines(axes)
        for iteration in (2, 3):
            points = [(entry["epoch"], entry[f"{change}_{iteration}"]) for entry in PROBED]
            assert drawn[f"iteration {iteration}"] == points
        # The paper does not plot iteration 4.
        assert "iteration 4" not in drawn
        assert axes.get_ylim() == panels[0].get_ylim()
        low, high = axes.get_ylim()
        assert all(low < y < high for points in drawn.values() for _, y in points)


def test_a_seed_that_was_probed_is_drawn_before_one_that_was_not(shelf: Shelf) -> None:
    for seed, history in ((0, ()), (1, PROBED), (2, PROBED)):
        run = f"mnist-short/capsnet-r3-recon/seed-{seed}"
        shelf.evaluate(shelf.train(run, history), "routing", CURVES)
    assert "mnist-short/capsnet-r3-recon/seed-1" in heading(shelf.draw("sabour2017-fig-a1"))


def test_published_values_lie_over_every_definition(shelf: Shelf) -> None:
    shelf.evaluate(shelf.train("mnist-short/capsnet-r3-recon/seed-0", PROBED), "routing", CURVES)
    claims = published("Fig. A.1 (a)")
    second = [c for c in claims if c.condition["iteration"] == 2]
    third = [c for c in claims if c.condition["iteration"] == 3]
    for axes in shelf.draw("sabour2017-fig-a1").axes[:3]:
        drawn = bars(axes)
        places = [10, 50, 100, 200, 300, 500, (750 + 1275) / 2]
        assert drawn["published, iteration 2"] == expected_bars(second, places)
        assert drawn["published, iteration 3"] == expected_bars(third, [1, 1275])


def test_where_a_published_value_stands() -> None:
    claims = {c.id.rpartition("/")[2]: c for c in published("Fig. A.1 (a)")}
    every = list(claims.values())
    assert epochs_of(claims["iteration-2-epoch-50"], every) == (50, 50)
    assert epochs_of(claims["iteration-2-plateau"], every) == (750, 1275)
    assert epochs_of(claims["iteration-3-start"], every) == (1, 1)
    assert epochs_of(claims["iteration-3-end"], every) == (1275, 1275)


def test_a_history_without_a_probe_leaves_one_panel(shelf: Shelf) -> None:
    history = [{"epoch": 1.0, "step": 469, "train_loss": 0.1}]
    shelf.evaluate(shelf.train("mnist-short/capsnet-r3-recon/seed-0", history), "routing", CURVES)
    figure = shelf.draw("sabour2017-fig-a1")
    assert len(figure.axes) == 1
    assert "published" in bars(figure.axes[0])
    assert "(a): not in this run's history" in heading(figure)


def test_only_iterations_of_the_paper_are_looked_for() -> None:
    assert probed_iterations(PROBED) == [2, 3]
    assert probed_iterations([{"logit_change_10": 1.0, "logit_change": 1.0, "epoch": 1.0}]) == [10]
    assert probed_iterations([]) == []


@pytest.mark.fault
def test_a_changed_history_is_refused(shelf: Shelf) -> None:
    run = "mnist-short/capsnet-r3-recon/seed-0"
    shelf.evaluate(shelf.train(run, PROBED), "routing", CURVES)
    with (shelf.results / "runs" / run / "history.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(CapsreproError, match="is not the history that its record speaks of"):
        shelf.draw("sabour2017-fig-a1")


def history(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": n, "step": 100 * n, "train_loss": x} for n, x in enumerate(losses, start=1)]


def test_one_and_three_iterations_are_drawn_with_seeds_and_mean(shelf: Shelf) -> None:
    for seed, losses in enumerate([(0.4, 0.2), (0.6, 0.3)]):
        shelf.train(f"mnist-short/capsnet-r1-recon/seed-{seed}", history(*losses))
    shelf.train("mnist-short/capsnet-r3-recon/seed-1", history(0.3, 0.1))
    figure = shelf.draw("sabour2017-fig-a2")
    (axes,) = figure.axes
    assert lines(axes) == {
        "1 iteration (seeds: 0, 1)": [(50, 0.5), (150, 0.25)],
        "3 iterations (seeds: 1)": [(50, 0.3), (150, 0.1)],
    }
    assert len(axes.get_lines()) == 5
    assert "on mnist-short" in heading(figure)
    assert "capsnet-r1-recon and capsnet-r3-recon, trained for 1 %" in heading(figure)
    # The published curve is CIFAR-10's: nothing of it is laid over another data set's.
    assert bars(axes) == {}


def test_epochs_stand_in_their_middle(shelf: Shelf) -> None:
    entries = [{"step": step, "train_loss": loss} for step, loss in ((10, 1.0), (30, 0.5))]
    record = shelf.train("mnist/capsnet-r3/seed-0", entries)
    assert loss_curve(shelf.open(), record) == [(5, 1.0), (20, 0.5)]
    assert mean_curve([[(5, 1.0), (20, 0.5)], [(5, 0.0)]]) == [(5, 0.5)]


def test_only_models_that_differ_in_nothing_else_are_a_pair(shelf: Shelf) -> None:
    shelf.train("mnist-short/capsnet-r1/seed-0", history(0.4))
    shelf.train("mnist-short/capsnet-r3-recon/seed-0", history(0.3))
    with pytest.raises(NothingToDrawError) as caught:
        shelf.draw("sabour2017-fig-a2")
    assert str(caught.value) == (
        "no protocol has finished runs with one and with three iterations; "
        "run `capsrepro run mnist-short/capsnet-r1-recon/seed-0`."
    )
    shelf.train("mnist-short/capsnet-r3/seed-0", history(0.3))
    assert "capsnet-r1 and capsnet-r3," in heading(shelf.draw("sabour2017-fig-a2"))


def test_the_cheapest_pair_is_proposed(shelf: Shelf) -> None:
    with pytest.raises(NothingToDrawError) as caught:
        shelf.draw("sabour2017-fig-a2")
    names = [f"`capsrepro run multimnist-short/capsnet-r{n}-recon/seed-0`" for n in (1, 3)]
    assert str(caught.value).endswith(f"run {' and '.join(names)}.")


def test_run_names_the_pair_and_its_seed(shelf: Shelf) -> None:
    for protocol in ("mnist", "mnist-short"):
        for iterations in (1, 3):
            for seed in (0, 1):
                run = f"{protocol}/capsnet-r{iterations}-recon/seed-{seed}"
                shelf.train(run, history(0.1 * iterations + seed))
    assert "on mnist," in heading(shelf.draw("sabour2017-fig-a2"))
    # The same seed has another pair, which would come first if nothing were named.
    for iterations in (1, 3):
        shelf.train(f"mnist-short/capsnet-r{iterations}/seed-1", history(0.5))
    figure = shelf.draw("sabour2017-fig-a2", "mnist-short/capsnet-r3-recon/seed-1")
    assert "capsnet-r1-recon and capsnet-r3-recon," in heading(figure)
    (axes,) = figure.axes
    assert list(lines(axes)) == ["1 iteration (seeds: 1)", "3 iterations (seeds: 1)"]
    with pytest.raises(NothingToDrawError, match="seed-2 has no finished partner"):
        shelf.draw("sabour2017-fig-a2", "mnist-short/capsnet-r3-recon/seed-2")


@pytest.fixture
def cifar(shelf: Shelf) -> Shelf:
    """CIFAR-10 in both readings, a hundredth of the budget."""
    real = load_params(ROOT / "params.yaml").protocols
    protocols = {
        name: real["mnist"].model_copy(
            update={
                "models": "cifar10",
                "dataset": "cifar10",
                "judged_as": "cifar10",
                "full_steps": 600_000,
                "recipe": real["mnist"].recipe.model_copy(update={"steps": steps}),
                "attacks": {},  # their sources are no models of cifar10
            }
        )
        for name, steps in (("cifar-text", 6_000), ("cifar-code", 6_000), ("cifar", 600_000))
    }
    shelf.params = shelf.params.model_copy(
        update={"protocols": {**shelf.params.protocols, **protocols}}
    )
    return shelf


def test_published_losses_lie_over_the_authors_reading_of_cifar10(cifar: Shelf) -> None:
    for n in (1, 3):
        cifar.train(f"mnist/capsnet-r{n}/seed-0", history(0.1))
        cifar.train(f"cifar-text/capsnet-r{n}-recon/seed-0", history(0.2))
        cifar.train(f"cifar-code/capsnet-r{n}-code/seed-0", history(0.01))
    figure = cifar.draw("sabour2017-fig-a2")
    (axes,) = figure.axes
    assert "on cifar-code," in heading(figure)
    claims = published("Fig. A.2")
    for label, model in (("1 iteration", "capsnet-r1"), ("3 iterations", "capsnet-r3")):
        own = [c for c in claims if c.model == model]
        places = [0, 50_000, 100_000, 200_000, 300_000, 500_000, 590_000]
        assert bars(axes)[f"published, {label}"] == expected_bars(own, places)
    assert axes.get_ylim()[1] > 0.025
    # A short run would else be a dot.
    assert axes.get_xscale() == "symlog"


def test_a_sum_over_classes_is_not_laid_beside_the_published_mean(cifar: Shelf) -> None:
    for n in (1, 3):
        cifar.train(f"cifar-text/capsnet-r{n}-recon/seed-0", history(0.2))
    assert bars(cifar.draw("sabour2017-fig-a2").axes[0]) == {}


def test_the_authors_reading_comes_first_but_published_losses_only_over_cifar10(
    shelf: Shelf,
) -> None:
    for n in (1, 3):
        shelf.train(f"mnist-short/capsnet-r{n}/seed-0", history(0.2))
        shelf.train(f"mnist-short/capsnet-r{n}-code/seed-0", history(0.02))
    figure = shelf.draw("sabour2017-fig-a2")
    assert "capsnet-r1-code and capsnet-r3-code," in heading(figure)
    assert bars(figure.axes[0]) == {}


def test_a_full_run_is_drawn_on_the_paper_s_axis(cifar: Shelf) -> None:
    for n in (1, 3):
        cifar.train(f"cifar/capsnet-r{n}-code/seed-0", history(0.01))
    (axes,) = cifar.draw("sabour2017-fig-a2").axes
    assert axes.get_xscale() == "linear"
    assert len(bars(axes)) == 2


EDGES = [0.0, 0.1, 0.3, 1.0]


def by_overlap(*errors: float) -> dict[str, list[float]]:
    return {
        "overlap_from": EDGES[:-1],
        "overlap_to": EDGES[1:],
        "composites": [1000.0, 200.0, 10.0],
        "error_pct": list(errors),
    }


def test_models_are_lines_of_means_with_intervals(shelf: Shelf) -> None:
    for model, errors in (("capsnet-r3-recon", (5.0, 10.0, 0.0)), ("cnn-baseline", (8, 20, 50))):
        for seed in (0, 1):
            trained = shelf.train(f"multimnist-short/{model}/seed-{seed}")
            shelf.evaluate(trained, "overlap", by_overlap(*(e * (1 + seed) for e in errors)))
    figure = shelf.draw("sabour2017-error-by-overlap")
    (axes,) = figure.axes
    drawn = bars(axes)
    assert list(drawn) == ["capsnet-r3-recon (seeds: 0, 1)", "cnn-baseline (seeds: 0, 1)"]
    for counts, name in (((75, 30, 0), "capsnet-r3-recon"), ((120, 60, 7.5), "cnn-baseline")):
        for place, (k, n) in enumerate(zip(counts, (1000, 200, 10), strict=True)):
            x, low, high = drawn[f"{name} (seeds: 0, 1)"][place]
            assert abs(x - place) < 0.2
            if k == int(k):
                ends = binomtest(int(k), n).proportion_ci(0.95, method="wilson")
                assert (low, high) == pytest.approx((100 * ends.low, 100 * ends.high), abs=1e-9)
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["0–10 %\nn = 1,000", "10–30 %\nn = 200", "30–100 %\nn = 10"]
    assert "multimnist-short, trained for 0.333 % of the full budget" in heading(figure)


def test_other_protocols_are_other_figures(shelf: Shelf) -> None:
    short = shelf.params.protocols["multimnist-short"]
    shorter = short.model_copy(
        update={"recipe": short.recipe.model_copy(update={"steps": 500}), "title": "shorter"}
    )
    shelf.params = shelf.params.model_copy(
        update={"protocols": {**shelf.params.protocols, "multimnist-shorter": shorter}}
    )
    for run in ("multimnist-short/cnn-baseline", "multimnist-shorter/capsnet-r3-recon"):
        shelf.evaluate(shelf.train(f"{run}/seed-0"), "overlap", by_overlap(1, 2, 3))
    figure = shelf.draw("sabour2017-error-by-overlap")
    assert list(bars(figure.axes[0])) == ["cnn-baseline (seeds: 0)"]


def test_a_named_run_is_one_line(shelf: Shelf) -> None:
    for model in ("capsnet-r3-recon", "cnn-baseline"):
        run = shelf.train(f"multimnist-short/{model}/seed-1")
        shelf.evaluate(run, "overlap", by_overlap(1, 2, 3))
    figure = shelf.draw("sabour2017-error-by-overlap", "multimnist-short/cnn-baseline/seed-1")
    assert list(bars(figure.axes[0])) == ["cnn-baseline (seeds: 1)"]


def test_more_seeds_do_not_narrow_the_interval(shelf: Shelf) -> None:
    records = [
        shelf.evaluate(
            shelf.train(f"multimnist-short/cnn-baseline/seed-{seed}"),
            "overlap",
            by_overlap(4, 5, 6),
        )
        for seed in (0, 1, 2)
    ]
    assert error_and_interval(records, 0.95) == error_and_interval(records[:1], 0.95)
    (errors, low, high) = error_and_interval(records, 0.95)
    assert errors == [4, 5, 6]
    assert all(a < b < c for a, b, c in zip(low, errors, high, strict=True))


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(confidence: float) -> None:
    for k, n in ((0, 10), (1, 10), (5, 10), (10, 10), (37, 10_000), (9_999, 10_000)):
        ends = binomtest(k, n).proportion_ci(confidence, method="wilson")
        assert wilson_interval(k / n, n, confidence) == pytest.approx((ends.low, ends.high))
    for share in (0.0, 1 / 3, 1.0):
        low, high = wilson_interval(share, 7, confidence)
        assert 0 <= low <= share <= high <= 1
