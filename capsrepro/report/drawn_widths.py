"""How many dimensions of a capsule encode the width of its digit (DR17 §5.1, Fig. 4).

The paper moves one dimension at a time in steps of 0.05 from −0.25 to 0.25, draws the digit, and
sees that one of the 16 "almost always" represents the width; it gives no measure. Ours, on the
pictures that `capsrepro reconstruct` keeps: a dimension encodes the width when the drawn digit
becomes wider with every step, or narrower with every step, and by a pixel in all, the least that
such a picture shows. It is a lenient measure: slant widens a digit too. Every drawn digit must have
such a dimension, which is stricter than "almost always".

Shape suffixes: N digits, D dimensions, S steps, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from capsrepro.claims import Claim
from capsrepro.errors import CapsreproError
from capsrepro.files import has_sha256
from capsrepro.report.measurements import Fact, Measurement
from capsrepro.report.summaries import Group, models_of

METRIC = "width_dimensions"
LEAST_CHANGE_PX = 1.0
SWEEP: Mapping[str, Fact] = {"perturbation_max": 0.25, "perturbation_step": 0.05}
"""Of the pictures: 11 steps (`capsrepro.evaluation.reconstruction.PERTURBATIONS`)."""

Pictures = NDArray[np.uint8]


def with_drawn_widths(
    groups: Iterable[Group], claims: Iterable[Claim], results: Path
) -> list[Group]:
    """The same groups; those that a claim on `METRIC` is about with what their pictures show.

    Args:
        groups: Of single models.
        claims: All claims.
        results: The results folder, where the pictures stand.

    Raises:
        CapsreproError: Pictures that a record speaks of are missing or damaged.
    """
    asked = [claim for claim in claims if claim.judged and claim.metric == METRIC]
    return [
        replace(group, measurements=(*group.measurements, *_measured(group, results)))
        if any(group.stands_trial(claim, model) for claim in asked for model in models_of(claim))
        else group
        for group in groups
    ]


def width_dimensions(perturbed_NDSCHW: Pictures) -> NDArray[np.int64]:
    """How many dimensions encode the width of each digit, shape (N,).

    Args:
        perturbed_NDSCHW: Pictures of every digit with every dimension moved step by step.
    """
    widths_NDS = drawn_width(perturbed_NDSCHW)
    changes_NDS = np.diff(widths_NDS, axis=2)
    steady_ND = (changes_NDS > 0).all(2) | (changes_NDS < 0).all(2)
    enough_ND = np.abs(widths_NDS[..., -1] - widths_NDS[..., 0]) >= LEAST_CHANGE_PX
    encodes_ND: NDArray[np.bool_] = steady_ND & enough_ND
    counts_N: NDArray[np.int64] = encodes_ND.sum(1)
    return counts_N


def drawn_width(pictures: Pictures) -> NDArray[np.float64]:
    """Twice the horizontal standard deviation of the ink, in pixels; 0 without ink.

    Args:
        pictures: Shape (…, C, H, W); the result has the leading axes.
    """
    ink_W = pictures.sum((-3, -2), dtype=np.float64)
    share_W = ink_W / np.maximum(ink_W.sum(-1, keepdims=True), 1)
    columns_W = np.arange(pictures.shape[-1])
    mean_1 = (share_W * columns_W).sum(-1, keepdims=True)
    width: NDArray[np.float64] = 2 * np.sqrt((share_W * (columns_W - mean_1) ** 2).sum(-1))
    return width


def _measured(group: Group, results: Path) -> list[Measurement]:
    """One point for each drawn digit, since a bound must hold at all of them."""
    values: dict[tuple[int, int], dict[int, float]] = {}
    for seed, sha256 in group.pictures.items():
        run = f"{group.protocol}/{group.model}/seed-{seed}"
        perturbed_NDSCHW, labels_N = _read_pictures(results / "runs" / run, run, sha256)
        counts = width_dimensions(perturbed_NDSCHW).tolist() if len(labels_N) else []
        labels = labels_N.tolist()
        for place, count in enumerate(counts):
            # Not its place: a digit that a seed never recognises is left out of its pictures.
            example = labels[:place].count(labels[place])
            values.setdefault((labels[place], example), {})[seed] = float(count)
    setting = {"evaluation": "reconstruct", **SWEEP}
    return [
        Measurement(METRIC, setting, {"digit": digit, "example": example}, by_seed)
        for (digit, example), by_seed in values.items()
    ]


def _read_pictures(folder: Path, run: str, sha256: str) -> tuple[Pictures, Pictures]:
    """Perturbed pictures (N, D, S, C, H, W) and classes (N,) of one run; both may be empty."""
    path = folder / "reconstruct.npz"
    remedy = f"restore it with `git checkout`, or delete it and run `capsrepro reconstruct {run}`."
    if not has_sha256(path, sha256):
        raise CapsreproError(f"{path} does not hold the pictures its record speaks of; {remedy}")
    none = np.empty(0, np.uint8)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays.get("perturbed", none), arrays.get("perturbed_labels", none)
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise CapsreproError(f"{path} holds no pictures; {remedy}") from error
