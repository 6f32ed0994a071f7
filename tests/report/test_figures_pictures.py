"""Figures made of pictures: which stand where, what is written over them, and in which colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from figure_files import (
    Arrays,
    Shelf,
    captions,
    drawn_cells,
    drawn_pixels,
    examples,
    figure_params,
    heading,
    one_digit,
    perturbations,
    red_captions,
    two_digits,
)
from matplotlib.figure import Figure

from capsrepro.records import Record
from capsrepro.report.figures.canvas import house_style
from capsrepro.report.figures.composites import overlay
from capsrepro.report.figures.mosaic import Block, as_picture, draw_mosaic, tile
from capsrepro.report.figures.perturbations import strongest_dimensions
from capsrepro.report.figures.reconstructions import right_and_wrong

Draw = Callable[..., Figure]
ORANGE, BLUE, WHITE = (255, 128, 0), (0, 128, 255), (255, 255, 255)


@pytest.fixture
def draw(tmp_path: Path, run_record: Callable[..., Record]) -> Draw:
    """Draw a figure of one run with these pictures."""
    shelf = Shelf(tmp_path / "results", figure_params(), run_record)

    def drawn(name: str, arrays: Arrays, run: str = "mnist-short/capsnet-r3-recon/seed-0"):
        shelf.evaluate(shelf.train(run), "reconstruct", arrays=arrays)
        return shelf.draw(name)

    return drawn


def white_row(cell: np.ndarray) -> int:
    """Which class a picture of `examples` shows."""
    return int(cell.mean(axis=(1, 2)).argmax())


def test_right_examples_stand_before_failures_shown_twice(draw: Draw) -> None:
    figure = draw("sabour2017-fig3", one_digit())
    (axes,) = figure.axes
    triples = ["(0, 0, 0)", "(1, 1, 1)", "(2, 2, 2)", "(3, 3, 3)", "(4, 4, 4)", "(5, 5, 5)"]
    failures = ["(5, 3, 5)", "(5, 3, 3)", "(8, 2, 8)", "(8, 2, 2)"]
    assert captions(axes) == triples + failures
    assert red_captions(axes) == failures
    assert [text.get_text() for text in axes.get_yticklabels()] == ["input", "output"]
    cells = drawn_cells(figure, axes, 2, 10)
    for caption, above, below in zip(captions(axes), *cells, strict=True):
        label, _, shown = map(int, caption.strip("()").split(", "))
        assert (white_row(above), white_row(below)) == (label, shown)


def test_both_labels_must_be_right_in_any_order() -> None:
    labels = [[1, 2], [1, 2], [1, 2], [2, 1]]
    arrays = examples(labels, [[1, 2], [2, 1], [1, 3], [3, 2]])
    assert right_and_wrong(arrays) == ([0, 1], [2, 3])


def test_what_there_is_too_little_of_is_left_out(draw: Draw) -> None:
    (axes,) = draw("sabour2017-fig3", examples([[7], [1]], [[7], [1]])).axes
    assert captions(axes) == ["(7, 7, 7)", "(1, 1, 1)"]
    assert red_captions(axes) == []
    (axes,) = draw("sabour2017-fig3", examples([[7]], [[1]])).axes
    assert captions(axes) == ["(7, 1, 7)", "(7, 1, 1)"]


def test_the_heading_names_run_error_budget_and_source(draw: Draw) -> None:
    text = heading(draw("sabour2017-fig3", one_digit()))
    assert "after Sabour et al. 2017, Fig. 3" in text
    assert "mnist-short/capsnet-r3-recon/seed-0: test error 0.79 %" in text
    assert "trained for 1 % of the full budget" in text


def test_rows_show_the_strongest_dimension_not_yet_shown(draw: Draw) -> None:
    strengths = [[1, 9, 5, 0], [2, 20, 7, 0], [3, 9, 8, 1]]
    figure = draw("sabour2017-fig4", perturbations(strengths, [6, 5, 4]))
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["6, dimension 2", "5, dimension 3", "4, dimension 1"]
    assert captions(axes)[:3] == ["input", "δ = −0.25", "δ = −0.20"]
    assert (captions(axes)[6], captions(axes)[-1]) == ("δ = 0.00", "δ = 0.25")
    cells = drawn_cells(figure, axes, 3, 12)
    assert cells[:, 0].min() == 255
    for row, strength in zip(cells, (9, 7, 3), strict=True):
        assert [int(cell.max()) for cell in row[1:]] == [strength * step for step in range(11)]


def test_all_dimensions_of_the_first_digit(draw: Draw) -> None:
    figure = draw("sabour2017-fig4-all", one_digit())
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [f"dimension {number}" for number in range(1, 17)]
    assert "capsule of a 6" in heading(figure)
    cells = drawn_cells(figure, axes, 16, 12)
    assert [int(row[-1].max()) for row in cells] == [10 * (5 * d % 16) for d in range(16)]


def test_the_change_of_a_picture_has_no_sign_and_does_not_wrap() -> None:
    ends = np.array([[200, 0], [0, 90], [100, 100]], np.uint8)
    pictures = np.repeat(ends[None, :, :, None, None, None], 11, axis=2)[:, :, [0, -1]]
    assert strongest_dimensions(pictures) == [0]


def test_more_digits_than_dimensions_start_again() -> None:
    arrays = perturbations([[1, 2]] * 5, [0] * 5)
    assert strongest_dimensions(arrays["perturbed"]) == [1, 0, 1, 0, 1]


def test_composites_in_two_blocks_of_right_forced_and_wrong(draw: Draw) -> None:
    figure = draw("sabour2017-fig5", two_digits(), "multimnist-short/capsnet-r3-recon/seed-0")
    first, second = figure.axes
    assert captions(first) == [
        "R:(0, 3)\nL:(0, 3)",
        "R:(1, 4)\nL:(1, 4)",
        "R:(2, 5)\nL:(2, 5)",
        "R:(3, 6)\nL:(3, 6)",
        "*R:(0, 2)\nL:(0, 3)",
        "*R:(0, 2)\nL:(1, 4)",
        "R:(2, 5)\nL:(2, 5)",
        "R=P:(2, 6)\nL:(2, 5)",
    ]
    assert captions(second)[0] == "R:(4, 7)\nL:(4, 7)"
    assert captions(second)[7] == "R=P:(3, 7)\nL:(3, 6)"
    for axes in (first, second):
        assert red_captions(axes) == captions(axes)[6:]


def test_each_reading_has_composites_of_its_own(
    tmp_path: Path, run_record: Callable[..., Record]
) -> None:
    shelf = Shelf(tmp_path / "results", figure_params(), run_record)
    for run in ("capsnet-r3-recon", "capsnet-r3-recon-code"):
        trained = shelf.train(f"multimnist-short/{run}/seed-0")
        shelf.evaluate(trained, "reconstruct", arrays=two_digits())
    for name, run in (("fig5", "capsnet-r3-recon/"), ("fig5-code", "capsnet-r3-recon-code/")):
        assert f"multimnist-short/{run}seed-0" in heading(shelf.draw(f"sabour2017-{name}"))


def test_drawn_digits_have_two_colours_and_forced_ones_stay_dark(draw: Draw) -> None:
    figure = draw("sabour2017-fig5", two_digits(), "multimnist-short/capsnet-r3-recon/seed-0")
    for axes in figure.axes:
        inputs, outputs = drawn_cells(figure, axes, 2, 8)
        for caption, above, below in zip(captions(axes), inputs, outputs, strict=True):
            drawn, labels = (pair_of(line.partition(":")[2]) for line in caption.split("\n"))
            assert all((above[label] == WHITE).all() for label in labels)
            dark = np.delete(below, [digit for digit in drawn if digit in labels], axis=0)
            if caption.startswith("*"):
                assert dark.max() <= 255 // 32
            elif not caption.startswith("R=P"):
                assert dark.max() == 0
            colours = dict(zip(drawn, (ORANGE, BLUE), strict=True))
            for digit in set(drawn) & set(labels):
                assert (below[digit] == colours[digit]).all()


def pair_of(text: str) -> tuple[int, int]:
    first, second = text.strip("()").split(", ")
    return int(first), int(second)


def test_the_second_forced_picture_is_near_empty(draw: Draw) -> None:
    figure = draw("sabour2017-fig5", two_digits(), "multimnist-short/capsnet-r3-recon/seed-0")
    outputs = drawn_cells(figure, figure.axes[0], 2, 8)[1]
    assert 0 < outputs[5].max() <= 255 // 32
    assert outputs[4].max() == 255


def test_few_composites_make_one_block(draw: Draw) -> None:
    arrays = examples([[1, 2]], [[2, 1]])
    (axes,) = draw("sabour2017-fig5", arrays, "multimnist-short/capsnet-r3-recon/seed-0").axes
    assert captions(axes) == ["R:(1, 2)\nL:(1, 2)", "*R:(1, 3)\nL:(1, 2)"]


def test_where_both_digits_are_it_is_white() -> None:
    full, none = np.full((1, 1, 1), 255, np.uint8), np.zeros((1, 1, 1), np.uint8)
    assert overlay(full, full)[0, 0].tolist() == list(WHITE)
    assert overlay(full, none)[0, 0].tolist() == list(ORANGE)
    assert overlay(none, full)[0, 0].tolist() == list(BLUE)
    assert overlay(none, none)[0, 0].tolist() == [0, 0, 0]


def test_colours_pairs_and_grey() -> None:
    pixels = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    np.testing.assert_array_equal(as_picture(pixels), pixels.transpose(1, 2, 0))
    np.testing.assert_array_equal(as_picture(pixels[:2]), [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(as_picture(pixels[:1]), pixels[0])


def test_pictures_are_apart_and_coloured_ones_keep_their_colours() -> None:
    picture = np.zeros((28, 28, 3), np.uint8)
    picture[..., 1] = 200
    tiled = tile(Block(rows=[[picture] * 3] * 2, columns=["a"] * 3, names=["b"] * 2))
    assert tiled.shape == (2 * 28 + 2, 3 * 28 + 2 * 2, 3)
    assert (tiled[28:30] == 255).all()
    assert (tiled[:, 28:30] == 255).all()
    assert (tiled[30:58, 30:58] == (0, 200, 0)).all()


@pytest.mark.parametrize("side", [8, 28, 36, 48])
def test_headings_and_names_stay_inside_the_picture(side: int) -> None:
    block = Block([[np.zeros((side, side), np.uint8)]], ["caption\nof two lines"], ["a long name"])
    with house_style():
        figure = draw_mosaic(
            ["A heading that is wider than all the pictures below it", "x"], [block]
        )
        pixels = drawn_pixels(figure)
    edge = np.concatenate([pixels[:5].ravel(), pixels[-5:].ravel(), pixels[:, :5].ravel()])
    assert edge.min() == 255
    assert pixels[:, -5:].min() == 255
