"""How much of a digit's width one dimension of its capsule tells (DR17 §5.1).

The paper says that in almost every class one of the 16 dimensions represents the width of the
digit, and shows a picture. Our measure: the width of a digit is twice the horizontal standard
deviation of its ink, in pixels, which slant increases too. For every class the width is predicted
from one dimension of the class capsule, by least squares over the test images of that class.
Dimension and line are fitted on every other image of the class and R² is measured on the rest, so
that choosing the best of 16 does not flatter it. All 16 dimensions together, measured the same way,
give the ceiling.

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

LEAST_IMAGES = 40
"""A class with fewer is left out: half of them must settle 17 numbers."""

LEAST_SPREAD_PX = 1e-6
"""A class whose digits are equally wide, up to rounding, is left out: there is nothing to tell."""


def ink_width(images_BCHW: Tensor) -> Tensor:
    """Twice the horizontal standard deviation of the ink, in pixels, shape (B,).

    Args:
        images_BCHW: In [0, 1]; an image without ink has the width 0.
    """
    ink_BW = images_BCHW.double().sum((1, 2))
    # The least ink there can be is 1/255.
    share_BW = ink_BW / ink_BW.sum(1, keepdim=True).clamp(min=1e-9)
    columns_W = torch.arange(ink_BW.shape[1], device=ink_BW.device, dtype=torch.float64)
    mean_B1 = (share_BW * columns_W).sum(1, keepdim=True)
    return 2 * (share_BW * (columns_W - mean_B1).square()).sum(1).sqrt()


def measure_width(model: Any, split: EvaluationSplit) -> dict[str, float]:
    """Explained variance of the digits' width, averaged over the classes.

    Args:
        model: A CapsNet.
        split: Test images of one label each, right or wrong; the capsule is that of the label.

    Returns:
        `width_r2_best_dimension` and `width_r2_all_dimensions`, means over the classes, and
        `width_r2_best_dimension_lowest`, that of the class where it is least. R² on held-out images
        can be negative: then their mean width would have predicted better. Nothing when
        `LEAST_IMAGES` and `LEAST_SPREAD_PX` leave no class.
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
    explained = []
    for label in np.unique(classes):
        chosen = classes == label
        known, new = ((poses[chosen][start::2], width[chosen][start::2]) for start in (0, 1))
        if chosen.sum() >= LEAST_IMAGES and min(np.ptp(known[1]), np.ptp(new[1])) > LEAST_SPREAD_PX:
            explained.append((_best_r2(*known, *new), _r2(*known, *new)))
    if not explained:
        return {}
    best, together = zip(*explained, strict=True)
    return {
        "width_r2_best_dimension": float(np.mean(best)),
        "width_r2_best_dimension_lowest": float(np.min(best)),
        "width_r2_all_dimensions": float(np.mean(together)),
    }


def _best_r2(known_ND: Floats, known_N: Floats, new_ND: Floats, new_N: Floats) -> float:
    """R² on new images of the dimension that explains most on the known ones."""
    columns = range(known_ND.shape[1])
    fits = [_r2(known_ND[:, [d]], known_N, known_ND[:, [d]], known_N) for d in columns]
    best = [int(np.argmax(fits))]
    return _r2(known_ND[:, best], known_N, new_ND[:, best], new_N)


def _r2(known_ND: Floats, known_N: Floats, new_ND: Floats, new_N: Floats) -> float:
    """Share of the variance of `new_N` that least squares on the known images predicts."""
    known = np.column_stack([known_ND, np.ones(len(known_ND))])
    weights = np.linalg.lstsq(known, known_N, rcond=None)[0]
    residual = new_N - np.column_stack([new_ND, np.ones(len(new_ND))]) @ weights
    return float(1 - residual @ residual / ((new_N - new_N.mean()) @ (new_N - new_N.mean())))
