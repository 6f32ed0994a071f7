"""Figure 5 of Sabour et al. 2017: two overlapping digits, drawn apart.

The paper adds the two digits in red and green, which one man in twelve cannot tell apart; ours are
orange and blue, whose sum is white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.report.figures.archive import Archive, Wish, find_sources, read_pictures
from capsrepro.report.figures.mosaic import Block, Picture, as_picture, draw_mosaic
from capsrepro.report.figures.reconstructions import right_and_wrong

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TWO_DIGITS = Wish("reconstruct", "multimnist", ("capsnet-r3-recon",), False, "text")

FIRST, SECOND = (1.0, 0.5, 0.0), (0.0, 0.5, 1.0)
"""Shares of red, green and blue of the two digits."""

_BLOCKS, _RIGHT = 2, 4

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """One composite and what is drawn of it.

    Attributes:
        item: Which example.
        drawn: The two digits that are drawn, as the caption has them: `R:(2, 7)`.
        picture: Both of them in colours.
        failure: Whether it was classified wrong.
    """

    item: int
    drawn: str
    picture: Picture
    failure: bool = False


def overlay(first_CHW: Picture, second_CHW: Picture) -> Picture:
    """Two digits added in two colours, shape (height, width, 3); both together are white."""
    brightness_HW2 = np.stack([first_CHW.mean(axis=0), second_CHW.mean(axis=0)], axis=-1)
    colours_HW3 = np.minimum(brightness_HW2 @ np.array([FIRST, SECOND]), 255)
    return np.asarray(np.rint(colours_HW3), np.uint8)


def draw_composites_of_code(archive: Archive) -> Figure:
    """The same of the networks that are read as the authors' program."""
    return draw_composites(archive, replace(TWO_DIGITS, reading="code"))


def draw_composites(archive: Archive, wish: Wish = TWO_DIGITS) -> Figure:
    """Input above the two digits that are drawn from it.

    Each block holds composites that are classified right, then two of them with absent digits
    forced, then a failure drawn from its labels and from its prediction.

    Raises:
        NothingToDrawError: There is no record of reconstructions of images with two digits.
        CapsreproError: Its pictures are missing or damaged.
    """
    source = find_sources(archive, wish)[0]
    arrays = _in_order_of_labels(read_pictures(source))
    right, wrong = right_and_wrong(arrays)
    blocks = []
    for number in range(_BLOCKS):
        shown = right[number * _RIGHT : (number + 1) * _RIGHT]
        columns = [*_right(arrays, shown), *_failure(arrays, wrong[number : number + 1])]
        if columns:
            blocks.append(_block(arrays, columns))
    heading = [
        "Two overlapping digits drawn apart, after Sabour et al. 2017, Fig. 5",
        source.told(),
        "R: drawn digits (first orange, second blue, both white), L: labels, P: prediction; "
        "red: failures",
        "*: one or both of the drawn digits are neither label nor prediction and should stay dark",
    ]
    return draw_mosaic(heading, blocks)


def _right(arrays: Arrays, items: Sequence[int]) -> list[Column]:
    """Examples as they are, then the first with one absent digit and the second with two."""
    columns = [_column(arrays, item, ("labels", "labels"), "R") for item in items]
    columns += [_column(arrays, item, ("labels", "absent"), "*R") for item in items[:1]]
    return columns + [_column(arrays, item, ("absent", "absent"), "*R") for item in items[1:2]]


def _failure(arrays: Arrays, items: Sequence[int]) -> list[Column]:
    """Each from its labels and from its prediction."""
    return [
        _column(arrays, item, (kind, kind), sign, failure=True)
        for item in items
        for kind, sign in (("labels", "R"), ("predictions", "R=P"))
    ]


def _column(
    arrays: Arrays, item: int, kinds: tuple[str, str], sign: str, *, failure: bool = False
) -> Column:
    """The first digit of one kind (labels, predictions, absent) and the second of another."""
    digits = [arrays[kind][item, place] for place, kind in enumerate(kinds)]
    pictures = [arrays[f"drawn_{kind}"][item, place] for place, kind in enumerate(kinds)]
    drawn = f"{sign}:({digits[0]}, {digits[1]})"
    return Column(item, drawn, overlay(pictures[0], pictures[1]), failure)


def _in_order_of_labels(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Predictions come by their length: a digit that is a label too gets that label's colour."""
    labels, predictions = arrays["labels"], arrays["predictions"]
    crossed = (labels == predictions[:, ::-1]).any(axis=1)
    turned = {
        name: np.where(
            crossed.reshape(-1, *[1] * (arrays[name].ndim - 1)), arrays[name][:, ::-1], arrays[name]
        )
        for name in ("predictions", "drawn_predictions")
    }
    return {**arrays, **turned}


def _block(arrays: Arrays, columns: Sequence[Column]) -> Block:
    labels = [arrays["labels"][column.item] for column in columns]
    return Block(
        rows=[
            [as_picture(arrays["images"][column.item]) for column in columns],
            [column.picture for column in columns],
        ],
        columns=[
            f"{column.drawn}\nL:({first}, {second})"
            for column, (first, second) in zip(columns, labels, strict=True)
        ],
        names=["input", "output"],
        marked=frozenset(place for place, column in enumerate(columns) if column.failure),
    )
