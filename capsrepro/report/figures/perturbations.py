"""Figure 4 of Sabour et al. 2017: what single dimensions of a digit's capsule stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.report.figures.archive import Archive, Source, find_sources, read_pictures
from capsrepro.report.figures.mosaic import Block, Picture, as_picture, draw_mosaic
from capsrepro.report.figures.reconstructions import ONE_DIGIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 0.25
"""DR17 §5.1: dimensions are changed by −0.25 to 0.25."""


def strongest_dimensions(perturbed_NDSCHW: Picture) -> list[int]:
    """For each digit the dimension that changes its picture most among those not yet shown.

    The change is the sum of absolute differences between the pictures at both ends. Digits choose
    one after another, so that the rows show different dimensions, as the paper's do; where there
    are more digits than dimensions, all may be chosen again.
    """
    ends = perturbed_NDSCHW[:, :, [0, -1]].astype(np.int64)
    changes_ND = np.abs(ends[:, :, 1] - ends[:, :, 0]).sum(axis=(2, 3, 4))
    chosen: list[int] = []
    for changes_D in changes_ND:
        shown = set(chosen[len(chosen) // len(changes_D) * len(changes_D) :])
        free = [d for d in range(len(changes_D)) if d not in shown]
        chosen.append(max(free, key=lambda d: changes_D[d]))
    return chosen


def draw_perturbations(archive: Archive) -> Figure:
    """One row for each digit, in the dimension that changes it most.

    Raises:
        NothingToDrawError: There is no record of perturbed capsules.
        CapsreproError: Its pictures are missing or damaged.
    """
    source, arrays = _read(archive)
    labels, perturbed = arrays["perturbed_labels"], arrays["perturbed"]
    dimensions = strongest_dimensions(perturbed)
    rows = list(enumerate(dimensions))
    names = [f"{labels[n]}, dimension {d + 1}" for n, d in rows]
    heading = [
        "One dimension of a digit's capsule changed by δ, after Sabour et al. 2017, Fig. 4",
        source.told(),
        "each row: of the dimensions that no earlier row shows, the one that changes the picture "
        "most",
    ]
    return draw_mosaic(heading, [_block(arrays, rows, names)])


def draw_all_perturbations(archive: Archive) -> Figure:
    """Every dimension of the first digit; raises as `draw_perturbations` does."""
    source, arrays = _read(archive)
    rows = [(0, d) for d in range(arrays["perturbed"].shape[1])]
    digit = arrays["perturbed_labels"][0]
    heading = [
        f"Every dimension of the capsule of a {digit} changed by δ, after Sabour et al. 2017, "
        "Fig. 4",
        source.told(),
    ]
    return draw_mosaic(heading, [_block(arrays, rows, [f"dimension {d + 1}" for _, d in rows])])


def _read(archive: Archive) -> tuple[Source, dict[str, NDArray[Any]]]:
    source = find_sources(archive, ONE_DIGIT)[0]
    return source, dict(read_pictures(source))


def _block(arrays: dict[str, NDArray[Any]], rows: list[tuple[int, int]], names: list[str]) -> Block:
    """The input and all steps of these (digit, dimension) rows."""
    inputs, perturbed = arrays["perturbed_inputs"], arrays["perturbed"]
    deltas = np.linspace(-LARGEST, LARGEST, perturbed.shape[2])
    return Block(
        rows=[[as_picture(picture) for picture in (inputs[n], *perturbed[n, d])] for n, d in rows],
        columns=["input", *(f"δ = {delta:.2f}".replace("-", "−") for delta in deltas)],
        names=names,
    )
