"""A labelled grid of images, so that a person sees what a network sees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsrepro.errors import UsageError
from capsrepro.files import write_atomically
from capsrepro.report.figures.canvas import UNDATED, require_matplotlib

FORMATS = ("png", "svg", "pdf")
_CELL_INCHES = 0.9
_GAP_PX = 2


def draw_grid(
    images: NDArray[np.float32],
    captions: Sequence[str],
    title: str,
    path: Path,
    *,
    columns: int = 10,
) -> None:
    """Draw images row by row with a caption under each.

    Args:
        images: Shape (count, channels, height, width). One channel is grey, two are a stereo pair
            and stand side by side, three are red, green and blue. Values outside 0..1 stretch the
            image from its smallest to its largest value; others are drawn as they are.
        captions: One for each image.
        title: Above the grid.
        path: Picture to write; its ending names the format.
        columns: Images in a row.

    Raises:
        UsageError: The ending is none of `FORMATS`.
        CapsreproError: matplotlib is not installed, or the picture cannot be written.
    """
    form = path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise UsageError(
            f"cannot draw {path.name}: its ending is none of {', '.join(FORMATS)}; choose another."
        )
    require_matplotlib()
    from matplotlib.figure import Figure

    pictures = [_picture(image) for image in images]
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(
        figsize=(columns * _CELL_INCHES * width / height, rows * (_CELL_INCHES + 0.2) + 0.4),
        dpi=100,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=9)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel(caption, fontsize=7, labelpad=2)
        axes.spines[:].set_visible(False)
    write_atomically(path, partial(figure.savefig, format=form, metadata=UNDATED[form]))


def _picture(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """One image as matplotlib draws it: shape (height, width) or (height, width, 3), 0..1."""
    if image.min() < 0 or image.max() > 1:
        image = (image - image.min()) / max(image.max() - image.min(), 1e-6)
    if len(image) == 2:
        gap = np.ones((image.shape[1], _GAP_PX), np.float32)
        return np.concatenate([image[0], gap, image[1]], axis=1)
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]
