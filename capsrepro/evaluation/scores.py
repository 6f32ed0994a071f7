"""The class scores of every test image, kept so that models can vote together later (DR17 §7).

DR17's ensemble for CIFAR-10 is of seven networks; its authors' program sums the lengths of each
class capsule over them and takes the longest. `report/ensembles.py` does the same from these files.

float16 halves the files and holds a length to 0.0005 or better. Rounding never turns the order of
two scores round, it only makes equal what lay closer than that: such images are counted as tied.

Shape suffixes: N images, B of a batch, K classes, L labels per image.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.scores import count_errors, count_ties


def measure_scores(
    model: nn.Module, split: EvaluationSplit
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Score every image once, unaugmented.

    Args:
        model: A CapsNet; returns the lengths scores_BK of its class capsules.
        split: Test images.

    Returns:
        `test_error_pct`, `test_errors` and `test_images` as the rounded scores have them, and
        `tied_images`, on which alone they may differ from the run's own test; and the arrays
        `scores` (N, K) float16 and `labels` (N, L) uint8.
    """
    model.eval()
    with torch.inference_mode():
        parts = [(model(batch.images).half(), batch.labels.to(torch.uint8)) for batch in split]
    scores_NK, labels_NL = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    wrong = count_errors(scores_NK, labels_NL)
    metrics: dict[str, float] = {
        "test_error_pct": 100 * wrong / split.items,
        "test_errors": wrong,
        "test_images": split.items,
        "tied_images": count_ties(scores_NK, labels_NL),
    }
    return metrics, {"scores": scores_NK, "labels": labels_NL}
