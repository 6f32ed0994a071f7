"""How much of a digit's width one dimension of its capsule tells (DR17 §5.1).

The paper says that one of the 16 dimensions almost always represents the width of the digit, and
shows a picture. Our measure: the width of a digit is twice the standard deviation of its ink along
the row axis, in pixels; for every class, each dimension of the class capsule alone is regressed on
the width, by least squares, over the test images of that class. The dimension is chosen on the
images of even index and its R² measured on those of odd index, so that choosing the best of 16 does
not flatter it. All 16 dimensions together give the ceiling, measured the same way.

Shape suffixes: N images of one class, D pose dimensions, B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capsrepro.data.batches import EvaluationSplit

Floats = NDArray[np.float64]


def ink_width(images_BCHW: Tensor) -> Tensor:
    """Twice the standard deviation of the ink along the row axis, in pixels, shape (B,)."""
    ink_BW = images_BCHW.double().sum((1, 2))
    share_BW = ink_BW / ink_BW.sum(1, keepdim=True)
    columns_W = torch.arange(ink_BW.shape[1], device=ink_BW.device, dtype=torch.float64)
    mean_B1 = (share_BW * columns_W).sum(1, keepdim=True)
    return 2 * (share_BW * (columns_W - mean_B1).square()).sum(1).sqrt()


def measure_width(model: Any, split: EvaluationSplit) -> dict[str, float]:
    """Explained variance of the digits' width, averaged over the classes.

    Args:
        model: Returns class capsules v_BKD of images in [0, 1].
        split: Test images of one label each.

    Returns:
        `width_r2_best_dimension` and `width_r2_all_dimensions`, means over the classes, and
        `width_r2_best_dimension_lowest`, the class where it is least. R² on held-out images can be
        negative: then the mean width would have predicted better.
    """
    model.eval()
    capsules, labels, widths = [], [], []
    with torch.inference_mode():
        for batch in split:
            every = torch.arange(len(batch.labels), device=batch.labels.device)
            capsules.append(model.class_capsules(batch.images)[every, batch.labels[:, 0]])
            labels.append(batch.labels[:, 0])
            widths.append(ink_width(batch.images))
    poses, classes, width = (
        torch.cat(x).cpu().double().numpy() for x in (capsules, labels, widths)
    )
    best, together = [], []
    for label in np.unique(classes):
        chosen = classes == label
        one, every_dimension = _explained(poses[chosen], width[chosen])
        best.append(one)
        together.append(every_dimension)
    return {
        "width_r2_best_dimension": float(np.mean(best)),
        "width_r2_best_dimension_lowest": float(np.min(best)),
        "width_r2_all_dimensions": float(np.mean(together)),
    }


def _explained(poses_ND: Floats, width_N: Floats) -> tuple[float, float]:
    """R² on odd images: of the dimension that explains most on even ones, and of all together."""
    even, odd = slice(0, None, 2), slice(1, None, 2)
    fits = [_r2(poses_ND[even, [d]], width_N[even], poses_ND[even, [d]], width_N[even])
            for d in range(poses_ND.shape[1])]  # fmt: skip
    best = [int(np.argmax(fits))]
    return (
        _r2(poses_ND[even][:, best], width_N[even], poses_ND[odd][:, best], width_N[odd]),
        _r2(poses_ND[even], width_N[even], poses_ND[odd], width_N[odd]),
    )


def _r2(known_ND: Floats, known_N: Floats, new_ND: Floats, new_N: Floats) -> float:
    """Share of the variance of `new_N` that least squares on the known images predicts."""
    known = np.column_stack([known_ND, np.ones(len(known_ND))])
    weights = np.linalg.lstsq(known, known_N, rcond=None)[0]
    residual = new_N - np.column_stack([new_ND, np.ones(len(new_ND))]) @ weights
    return float(1 - residual @ residual / ((new_N - new_N.mean()) @ (new_N - new_N.mean())))
