"""Rows of small pictures with captions above the columns and beside the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capsrepro.report.figures.canvas import DPI, FAILURE, MARGIN, add_heading, heading_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = NDArray[np.uint8]

# In pixels of the PNG.
_CELL, _CAPTION, _PADDING, _LETTER = 150, 30, 12, 13.5


@dataclass(frozen=True)
class Block:
    """Pictures of one size.

    Attributes:
        rows: Equally long rows of pictures, each (height, width) grey or (height, width, 3).
        columns: Captions above the columns, of one or more lines.
        names: What stands at the left of each row.
        marked: Columns whose captions are red.
    """

    rows: Sequence[Sequence[Picture]]
    columns: Sequence[str]
    names: Sequence[str]
    marked: frozenset[int] = frozenset()

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a picture, in its own pixels."""
        height, width = self.rows[0][0].shape[:2]
        return height, width

    @property
    def gap(self) -> int:
        """Between two pictures, in their own pixels."""
        return max(1, self.cell[1] // 14)

    @property
    def scale(self) -> int:
        """Pixels of the file for one of a picture: a whole number, so that all come out alike."""
        return max(1, round(_CELL / max(self.cell)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all pictures together, in pixels of the file."""
        (height, width), gap = self.cell, self.gap
        tall = len(self.rows) * (height + gap) - gap
        wide = len(self.columns) * (width + gap) - gap
        return tall * self.scale, wide * self.scale

    @property
    def head(self) -> int:
        """Height of the captions above, in pixels of the file."""
        return _PADDING + _CAPTION * (1 + max(text.count("\n") for text in self.columns))


def as_picture(pixels_CHW: Picture) -> Picture:
    """Colours when there are three channels; any other number stands side by side in grey."""
    if len(pixels_CHW) == 3:
        return pixels_CHW.transpose(1, 2, 0)
    return np.concatenate(list(pixels_CHW), axis=1)


def tile(block: Block) -> Picture:
    """All pictures of a block in one of shape (height, width, 3), white between them."""
    (height, width), gap, scale = block.cell, block.gap, block.scale
    tiled = np.full((block.size[0] // scale, block.size[1] // scale, 3), 255, np.uint8)
    for r, row in enumerate(block.rows):
        for c, picture in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            tiled[y : y + height, x : x + width] = np.atleast_3d(picture)
    return tiled


def draw_mosaic(heading: Sequence[str], blocks: Sequence[Block]) -> Figure:
    """Draw blocks below each other, to the pixel of the file.

    Args:
        heading: Lines; the first is larger.
        blocks: At least one.
    """
    from matplotlib.figure import Figure

    top, heading_width = heading_size(heading)
    left = MARGIN + _letters(name for block in blocks for name in block.names) + _PADDING
    width = max(left + max(block.size[1] for block in blocks), MARGIN + heading_width) + MARGIN
    height = top + sum(block.head + block.size[0] + MARGIN for block in blocks)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    add_heading(figure, heading)
    for block in blocks:
        tall, wide = block.size
        bottom = height - top - block.head - tall
        _draw_block(figure, block, (left / width, bottom / height, wide / width, tall / height))
        top += block.head + tall + MARGIN
    return figure


def _draw_block(figure: Figure, block: Block, place: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(place)
    # Not resampled, which keeps the SVG as small as the pictures are.
    axes.imshow(tile(block), interpolation="none", aspect="auto")
    (height, width), gap = block.cell, block.gap
    middles = [c * (width + gap) + (width - 1) / 2 for c in range(len(block.columns))]
    axes.set_xticks(middles, block.columns, fontsize=7)
    axes.set_yticks(
        [r * (height + gap) + (height - 1) / 2 for r in range(len(block.rows))], block.names
    )
    axes.tick_params(length=0, pad=3, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for column in block.marked:
        axes.get_xticklabels()[column].set_color(FAILURE)


def _letters(texts: Iterable[str]) -> int:
    """About how wide the longest of these is, in pixels of the file."""
    return round(_LETTER * max(map(len, texts)))
