"""Figures of EM routing: which votes of which images, in which window, and what a history tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from figure_files import BINS, WINDOWS, Arrays, Shelf, drawn_pixels, figure_params, heading, votes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from capsrepro.files import write_text
from capsrepro.records import Record
from capsrepro.report.figures.archive import NothingToDrawError
from capsrepro.report.figures.canvas import FAILURE, shades
from capsrepro.report.figures.entropy import layers_of
from capsrepro.report.figures.votes import shown_images, window_that_holds

RUN = "matcaps-mnist-short/matcaps-small-em3/seed-0"
FIGURES = ("hinton2018-fig2", "hinton2018-figb2")


@pytest.fixture
def shelf(tmp_path: Path, run_record: Callable[..., Record]) -> Shelf:
    return Shelf(tmp_path / "results", figure_params(), run_record)


@pytest.fixture
def draw(shelf: Shelf) -> Callable[..., Figure]:
    """Draw one of the two figures from these arrays."""

    def drawn(arrays: Arrays, name: str = "hinton2018-fig2") -> Figure:
        shelf.evaluate(shelf.train(RUN), "votes", arrays=arrays)
        return shelf.draw(name)

    return drawn


def grid(figure: Figure, rows: int) -> np.ndarray:
    """All axes: in every row the picture, then one panel for each class."""
    return np.array(figure.axes, object).reshape(rows, -1)


def steps(axes: Axes) -> list[StepPatch]:
    return [patch for patch in axes.patches if isinstance(patch, StepPatch)]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(("distance", "window"), [(0.2, 0), (0.02, 1)])
def test_every_panel_has_the_histograms_of_its_image_and_class(
    name: str, distance: float, window: int, draw: Callable[..., Figure]
) -> None:
    arrays = votes([0, 1, 2, 1], [0, 1, 2, 0], distance=distance)
    axes = grid(draw(arrays, name), 3)
    assert axes.shape == (3, 4)
    for row, item in zip(axes, (0, 1, 3), strict=True):
        for number, panel in enumerate(row[1:]):
            drawn = steps(panel)
            assert [patch.get_label() for patch in drawn] == [f"iteration {n}" for n in (1, 2, 3)]
            for iteration, patch in enumerate(drawn):
                values, edges, _ = patch.get_data()
                expected = arrays["histograms"][item, iteration, number, window, :-1]
                np.testing.assert_array_equal(values, expected)
                np.testing.assert_allclose(edges, np.linspace(0, WINDOWS[window], BINS + 1))


def test_the_first_figure_has_one_scale_and_the_second_logarithms(
    draw: Callable[..., Figure],
) -> None:
    arrays = votes([0, 1, 2], [0, 1, 0])
    near, whole = (grid(draw(arrays, name), 3)[:, 1:].ravel() for name in FIGURES)
    assert {panel.get_ylim() for panel in near} == {near[0].get_ylim()}
    highest = arrays["histograms"][:, :, :, 0, :-1].max()
    assert near[0].get_ylim()[0] == 0
    assert near[0].get_ylim()[1] > highest
    assert {panel.get_yscale() for panel in near} == {"linear"}
    assert {panel.get_yscale() for panel in whole} == {"log"}
    assert len({panel.get_ylim() for panel in whole}) > 1
    for panel in whole:
        low, high = panel.get_ylim()
        tallest = max(float(patch.get_data().values.max()) for patch in steps(panel))
        assert low == 0.01
        assert high >= tallest


def test_shares_of_all_votes_are_written_into_the_panels(draw: Callable[..., Figure]) -> None:
    arrays = votes([0], [0])
    arrays["histograms"][:] = 0
    for iteration, masses in enumerate(([5, 5, 6], [0.02, 15.98, 0], [16, 0, 0])):
        arrays["histograms"][0, iteration, :, :, 1] = np.array(masses)[:, None]
    (row,) = grid(draw(arrays), 1)
    told = [panel.texts[0].get_text() for panel in row[1:]]
    assert told == ["31 → 0.1 → 100", "31 → 100 → 0", "38 → 0 → 0"]


def test_the_true_class_is_grey_and_a_failure_is_red(draw: Callable[..., Figure]) -> None:
    axes = grid(draw(votes([1, 2], [1, 0])), 2)
    backgrounds = [[panel.get_facecolor()[:3] != (1, 1, 1) for panel in row[1:]] for row in axes]
    assert backgrounds == [[False, True, False], [False, False, True]]
    labels = [row[0].xaxis.label for row in axes]
    assert [label.get_text() for label in labels] == ["1", "2, taken for 0"]
    assert [label.get_color() == FAILURE for label in labels] == [False, True]
    assert [panel.get_title() for panel in axes[0]] == ["", "0", "1", "2"]


def test_the_heading_names_run_budget_window_and_what_lies_beyond(
    draw: Callable[..., Figure],
) -> None:
    arrays = votes([0, 1, 2], [0, 1, 0], distance=0.45)
    near, whole = (heading(draw(arrays, name)) for name in FIGURES)
    told = f"{RUN}: test error 0.79 %, trained for 1 % of the full budget"
    held = arrays["histograms"][:, :, :, 0].astype(float).sum((0, 1, 2))
    share = 100 * held[-1] / held.sum()
    assert "after Hinton et al. 2018, Fig. 2" in near
    assert "after Hinton et al. 2018, Fig. B.2" in whole
    assert told in near
    assert told in whole
    assert 10 < share < 50
    assert f"to 0.5 (paper: 0.05), {share:.0f} % lie further" in near
    assert "to 60 (paper: 60), 0 % lie further" in whole


def test_votes_that_lie_nearer_are_looked_at_from_nearer(draw: Callable[..., Figure]) -> None:
    assert "to 0.05 (paper: 0.05)" in heading(draw(votes([0], [0], distance=0.02)))
    assert "to 60 (paper: 0.05)" in heading(draw(votes([0], [0], distance=20)))


def test_the_smallest_window_that_holds_enough() -> None:
    beyond = np.array([0.3, 0.9, 0.001])
    histograms = np.stack([1 - beyond, beyond], axis=1)[None]
    assert window_that_holds(histograms, WINDOWS, 0.5) == (0, pytest.approx(0.7))
    assert window_that_holds(histograms, WINDOWS, 0.05) == (1, pytest.approx(0.1))
    assert window_that_holds(histograms, WINDOWS, 0.99) == (2, pytest.approx(0.999))
    assert window_that_holds(histograms, WINDOWS, 0.9999) == (2, pytest.approx(0.999))


def test_images_of_the_paper_s_classes_come_first() -> None:
    names = ["animal", "human", "plane", "truck", "car"]
    arrays = votes([0, 1, 2, 3, 4, 0, 2], [0, 1, 2, 3, 4, 1, 4], classes=5)
    assert shown_images(arrays, names) == [3, 1, 6]
    # Where the data have other names: the first two that are right and the first that is wrong.
    assert shown_images(arrays, list("01234")) == [0, 1, 5]
    assert shown_images(votes([0], [0]), names) == [0]
    assert shown_images(votes([4], [2], classes=5), names) == [0]


def test_classes_have_their_names_where_the_manifest_is_here(
    shelf: Shelf, draw: Callable[..., Figure]
) -> None:
    path = shelf.results / "datasets" / "mnist.json"
    write_text(path, json.dumps({"classes": ["none", "one", "two"]}))
    axes = grid(draw(votes([0, 1, 2], [0, 1, 0])), 3)
    assert [panel.get_title() for panel in axes[0, 1:]] == ["none", "one", "two"]
    assert axes[2, 0].get_xlabel() == "two, taken for none"
    write_text(path, "damaged")
    assert [panel.get_title() for panel in grid(shelf.draw(FIGURES[0]), 3)[0, 1:]] == list("012")


def test_all_iterations_are_told_apart_in_the_picture(draw: Callable[..., Figure]) -> None:
    pixels = drawn_pixels(draw(votes([0], [0]))).reshape(-1, 3)
    found = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in pixels}
    assert set(shades(3)) <= found


def test_shades_go_from_light_to_dark() -> None:
    assert len({*shades(5)}) == 5
    assert shades(1) == shades(5)[-1:]
    assert shades(3) == shades(5)[::2]
    brightness = [sum(bytes.fromhex(shade[1:])) for shade in shades(5)]
    assert brightness == sorted(brightness, reverse=True)


LAYERS = ("conv_caps1", "conv_caps2", "class_caps")


def told(epoch: float, iterations: int = 3) -> dict[str, float]:
    """An entry of a history; the entropies are told apart by their digits."""
    entropies = {
        f"routing_entropy_nat_{layer}_{n}": (place + 1) / n + epoch / 1000
        for place, layer in enumerate(LAYERS)
        for n in range(1, iterations + 1)
    }
    return {"epoch": epoch, "step": 100 * epoch, "train_loss": 0.1, **entropies}


def test_entropy_is_a_panel_for_each_layer_and_a_line_for_each_iteration(shelf: Shelf) -> None:
    history = [told(1.0), {"epoch": 2.0, "step": 200, "train_loss": 0.1}, told(3.0)]
    shelf.train(RUN, history)
    figure = shelf.draw("hinton2018-entropy")
    assert [axes.get_title() for axes in figure.axes] == list(LAYERS)
    for axes, layer in zip(figure.axes, LAYERS, strict=True):
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        assert lines == {
            f"iteration {n}": [
                [entry["epoch"], entry[f"routing_entropy_nat_{layer}_{n}"]]
                for entry in (history[0], history[2])
            ]
            for n in (1, 2, 3)
        }
        assert axes.get_ylim()[0] == 0
    assert f"{RUN}: test error 0.79 %, trained for 1 % of the full budget" in heading(figure)


def test_what_a_history_tells() -> None:
    assert layers_of([]) == {}
    assert layers_of([{"epoch": 1, "coupling_entropy_nat_2": 1}]) == {}
    assert layers_of([told(1.0, 1), told(2.0, 2)]) == {layer: [1, 2] for layer in LAYERS}


def test_other_networks_and_silent_histories_are_passed_over(shelf: Shelf) -> None:
    shelf.train("mnist/capsnet-r3-recon/seed-0", [told(1.0)])
    shelf.train(RUN, [{"epoch": 1.0, "step": 100, "train_loss": 0.1}])
    other = RUN.replace("seed-0", "seed-2")
    shelf.train(other, [told(1.0)])
    assert other in heading(shelf.draw("hinton2018-entropy"))


def test_without_a_history_the_cheapest_run_is_proposed(shelf: Shelf) -> None:
    shelf.train(RUN, [{"epoch": 1.0, "step": 100, "train_loss": 0.1}])
    with pytest.raises(NothingToDrawError) as caught:
        shelf.draw("hinton2018-entropy")
    assert str(caught.value) == (
        "no history tells of the entropy of EM routing; run `capsrepro run "
        "matcaps-mnist-short/matcaps-em3/seed-0`."
    )
    with pytest.raises(NothingToDrawError) as caught:
        shelf.draw("hinton2018-entropy", RUN)
    assert str(caught.value) == (
        f"no history of {RUN} tells of the entropy of EM routing; name a finished run of matrix "
        "capsules."
    )
