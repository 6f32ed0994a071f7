"""From class scores to right and wrong.

Shape suffixes: B images, K classes, L labels per image.
"""

from __future__ import annotations

from torch import Tensor


def correct(scores_BK: Tensor, labels_BL: Tensor) -> Tensor:
    """Whether the L highest scores are exactly the L labels: the authors' metric for any L.

    Returns:
        Booleans of shape (B,).
    """
    predicted_BL = scores_BK.topk(labels_BL.shape[1], dim=1).indices
    return (predicted_BL.sort(1).values == labels_BL.sort(1).values).all(1)
