"""What is kept of the distances of votes: some images one by one, and sums over the whole split.

Shape suffixes: see `capsrepro.evaluation.vote_distances`; E images that are kept, F fine bins, G
the two groups of classes: the true one, and the mean over the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from capsrepro.data.batches import EvaluationSplit
from capsrepro.evaluation.vote_distances import (
    Routed,
    assignment_entropy,
    class_shares,
    route_classes,
    vote_histograms,
    weighted_counts,
)
from capsrepro.models.predictions import correct

# Medians are read off logarithmic bins: 200 a decade, so that they are known to 0.6 %.
_LOWEST, _DECADES, _PER_DECADE = 1e-6, 10, 200

Arrays = dict[str, NDArray[Any]]


def measure_votes(
    model: Any,
    split: EvaluationSplit,
    *,
    right: int,
    wrong: int,
    windows: Sequence[float],
    bins: int,
) -> tuple[dict[str, float], dict[str, list[float]], Mapping[str, NDArray[Any]]]:
    """Measure the distances of votes to the class capsules over a whole split.

    Args:
        model: A MatrixCapsNet.
        split: Test images with one label each.
        right: How many images to keep of each class that are classified right, the first; ≥ 1.
        wrong: How many that are not; ≥ 1.
        windows: See `vote_histograms`.
        bins: See `vote_histograms`.

    Returns:
        Metrics after the last iteration and curves with one entry per `iteration`, see
        `_Totals.curves`; metrics also count the test errors. Arrays, what is classified right
        before what is not, and class by class: `images` (E, C, H, W) uint8, each from its darkest
        value to its brightest; `labels`, `predictions` (E,) uint8; `activations` (E, T, J) float32;
        `histograms` (E, T, J, W, H) float16. And `mean_histograms` (G, T, W, H) float32, the means
        over all images.
    """
    model.eval()
    totals, examples = _Totals(), _Examples(right, wrong)
    with torch.inference_mode():
        for images, labels, _ in split:
            routed, labels_B = route_classes(model, images), labels[:, 0].cpu()
            histograms = vote_histograms(routed, windows, bins)
            totals.add(routed, histograms, labels_B)
            examples.add(images.cpu(), routed, histograms, labels_B)
    curves = totals.curves()
    errors = {
        "test_error_pct": 100 * totals.errors / totals.images,
        "test_errors": float(totals.errors),
        "test_images": float(totals.images),
    }
    metrics = errors | {name: curve[-1] for name, curve in curves.items() if name != "iteration"}
    return metrics, curves, {**examples.arrays(), "mean_histograms": totals.mean_histograms()}


@dataclass
class _Totals:
    """Sums over the images, in float64."""

    images: int = 0
    errors: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, routed: Routed, histograms_BTJWH: Tensor, labels_B: Tensor) -> None:
        self.images += len(labels_B)
        self.errors += int((~_hits(routed, labels_B)).sum())
        parts = {
            "windows": _grouped(histograms_BTJWH, labels_B).sum(0),
            "fine": _fine_counts(routed, labels_B),
            "share": _grouped(class_shares(routed.assignments), labels_B).sum(0),
            "entropy": assignment_entropy(routed.assignments).double().sum(0),
        }
        for name, part in parts.items():
            self.sums[name] = self.sums.get(name, 0) + part

    def curves(self) -> dict[str, list[float]]:
        """By iteration, over all images.

        Returns:
            `true_vote_distance` and `other_vote_distance`, medians of all distances to capsules of
            the true class and of the other classes, weighted by R (0 where nothing is assigned);
            `true_class_share_pct`, of all R; `assignment_entropy_nat`, of a child's R, the mean
            over the children.
        """
        true_T, other_T = (_medians(counts_TF) for counts_TF in self.sums["fine"])
        entropy_T = (self.sums["entropy"] / self.images).tolist()
        return {
            "iteration": [float(step) for step in range(1, len(entropy_T) + 1)],
            "true_vote_distance": true_T,
            "other_vote_distance": other_T,
            "true_class_share_pct": (100 * self.sums["share"][0] / self.images).tolist(),
            "assignment_entropy_nat": entropy_T,
        }

    def mean_histograms(self) -> NDArray[np.float32]:
        return (self.sums["windows"] / self.images).float().numpy()


class _Examples:
    """The first images of each class that are classified right, and the first that are not."""

    def __init__(self, right: int, wrong: int) -> None:
        self.wanted = {True: right, False: wrong}
        self.found: dict[tuple[bool, int], list[Arrays]] = {}

    def add(
        self, images: Tensor, routed: Routed, histograms_BTJWH: Tensor, labels_B: Tensor
    ) -> None:
        predictions_B = routed.activations[:, -1].argmax(1)
        hits_B = _hits(routed, labels_B)
        for item, (hit, label) in enumerate(zip(hits_B.tolist(), labels_B.tolist(), strict=True)):
            kept = self.found.setdefault((not hit, label), [])
            if len(kept) < self.wanted[hit]:
                kept.append(
                    {
                        "images": _stretched(images[item]),
                        "labels": labels_B[item].to(torch.uint8).numpy(),
                        "predictions": predictions_B[item].to(torch.uint8).numpy(),
                        "activations": routed.activations[item].numpy(),
                        "histograms": histograms_BTJWH[item].half().numpy(),
                    }
                )

    def arrays(self) -> Arrays:
        kept = [example for key in sorted(self.found) for example in self.found[key]]
        return {name: np.stack([example[name] for example in kept]) for name in kept[0]}


def _hits(routed: Routed, labels_B: Tensor) -> Tensor:
    return correct(routed.activations[:, -1], labels_B.unsqueeze(1))


def _grouped(values: Tensor, labels_B: Tensor) -> Tensor:
    """The true class and the mean over the others: (B, T, J, …) becomes (B, G, T, …) in float64."""
    values = values.double().movedim(2, 1)
    is_true_BJ = one_hot(labels_B, values.shape[1]).bool()
    others = values[~is_true_BJ].view(len(values), -1, *values.shape[2:]).mean(1)
    return torch.stack([values[is_true_BJ], others], 1)


def _fine_counts(routed: Routed, labels_B: Tensor) -> Tensor:
    """R by logarithmic bins of the distance, over all images and classes, shape (G, T, F)."""
    places = (routed.distances.clamp(min=_LOWEST) / _LOWEST).log10() * _PER_DECADE
    bins = _DECADES * _PER_DECADE
    places_TBJN = places.long().clamp(max=bins - 1).movedim(1, 0)
    assignments_TBJN = routed.assignments.double().movedim(1, 0)
    is_true_BJ = one_hot(labels_B, places_TBJN.shape[2]).bool()
    return torch.stack(
        [
            weighted_counts(
                places_TBJN[:, group].flatten(1), assignments_TBJN[:, group].flatten(1), bins
            )
            for group in (is_true_BJ, ~is_true_BJ)
        ]
    )


def _medians(counts_TF: Tensor) -> list[float]:
    """Distances below which half of the weight lies, from the fine bins."""
    places_T = (counts_TF.cumsum(1) < counts_TF.sum(1, keepdim=True) / 2).sum(1)
    medians_T = _LOWEST * 10 ** ((places_T + 0.5) / _PER_DECADE)
    return torch.where(counts_TF.sum(1) > 0, medians_T, 0.0).tolist()


def _stretched(image_CHW: Tensor) -> NDArray[np.uint8]:
    """Bytes from the darkest value of an image to its brightest."""
    low, high = image_CHW.aminmax()
    span = (high - low).clamp(min=1e-6)
    return ((image_CHW - low) / span * 255).round().to(torch.uint8).numpy()
