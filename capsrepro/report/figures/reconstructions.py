"""Figure 3 of Sabour et al. 2017: what the decoder draws of test images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.report.figures.archive import Archive, Wish, find_sources, read_pictures
from capsrepro.report.figures.mosaic import Block, as_picture, draw_mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_DIGIT = Wish("reconstruct", "mnist", ("capsnet-r3-recon",), perturbs=True)

_RIGHT, _WRONG = 6, 2


def right_and_wrong(arrays: Mapping[str, NDArray[Any]]) -> tuple[list[int], list[int]]:
    """Which of the kept examples were classified right and which were not, in their order."""
    labels, predictions = (np.sort(arrays[name], axis=1) for name in ("labels", "predictions"))
    hits = (labels == predictions).all(axis=1)
    return np.flatnonzero(hits).tolist(), np.flatnonzero(~hits).tolist()


def draw_reconstructions(archive: Archive) -> Figure:
    """Input above output; a failure stands twice, drawn from its label and from its prediction.

    Raises:
        NothingToDrawError: There is no record of reconstructions of images with one digit.
        CapsreproError: Its pictures are missing or damaged.
    """
    source = find_sources(archive, ONE_DIGIT)[0]
    arrays = read_pictures(source)
    right, wrong = right_and_wrong(arrays)
    columns = [(item, "labels") for item in right[:_RIGHT]]
    columns += [(item, kind) for item in wrong[:_WRONG] for kind in ("labels", "predictions")]
    block = Block(
        rows=[
            [as_picture(arrays["images"][item]) for item, _ in columns],
            [as_picture(arrays[f"drawn_{kind}"][item, 0]) for item, kind in columns],
        ],
        columns=[_caption(arrays, item, kind) for item, kind in columns],
        names=["input", "output"],
        marked=frozenset(range(len(right[:_RIGHT]), len(columns))),
    )
    heading = [
        "Reconstructions of test images, after Sabour et al. 2017, Fig. 3",
        source.told(),
        "(label, prediction, drawn digit); red: failures, drawn from label and from prediction",
    ]
    return draw_mosaic(heading, [block])


def _caption(arrays: Mapping[str, NDArray[Any]], item: int, kind: str) -> str:
    label, prediction, drawn = (arrays[key][item, 0] for key in ("labels", "predictions", kind))
    return f"({label}, {prediction}, {drawn})"
