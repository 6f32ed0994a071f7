"""Test error of a trained model.

Shape suffixes: B images, K classes, L labels per image.
"""

from __future__ import annotations

import torch
from torch import nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.models.predictions import correct


def measure_accuracy(model: nn.Module, split: EvaluationSplit) -> dict[str, float]:
    """Classify every image once, unaugmented.

    Args:
        model: Returns class scores_BK for images in [0, 1].
        split: The test images.

    Returns:
        `test_error_pct` (all labels of an image must be right), `test_errors` (a count) and
        `test_images`.
    """
    model.eval()
    right = 0
    with torch.inference_mode():
        for batch in split:
            right += int(correct(model(batch.images), batch.labels).sum())
    wrong = split.items - right
    return {
        "test_error_pct": 100 * wrong / split.items,
        "test_errors": wrong,
        "test_images": split.items,
    }
