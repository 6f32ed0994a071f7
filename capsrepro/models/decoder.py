"""The decoder of Sabour et al. 2017, Section 4.1 and Figure 2.

Shape suffixes: B images, K classes, D pose dimensions, L digits to draw per image, N = B·L.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from torch import Tensor, nn

from capsrepro.models.convolution import start_


class Decoder(nn.Module):
    """Class capsules to an image: fully connected, ReLU, ReLU, …, sigmoid.

    Args:
        classes: Number of class capsules K.
        class_dim: Their dimensions D.
        image_shape: (C, H, W) of the output, values in [0, 1].
        widths: Hidden widths; the paper's are 512 and 1024.
        std: Truncated normal start of the matrices; None takes torch's rule.
        bias: Constant start of the biases; None takes torch's rule.
    """

    def __init__(
        self,
        classes: int,
        class_dim: int,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...],
        *,
        std: float | None,
        bias: float | None,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        sizes = [classes * class_dim, *widths, math.prod(image_shape)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            linear = nn.Linear(inputs, outputs)
            start_(linear, std, bias)
            layers += [linear, nn.ReLU()]
        layers[-1] = nn.Sigmoid()
        self.layers = nn.Sequential(*layers)

    def forward(self, capsules_BKD: Tensor, labels_BL: Tensor) -> Tensor:
        """Draw each named class from its own capsule, all others zeroed.

        Args:
            capsules_BKD: Class capsules.
            labels_BL: Classes to draw: the true ones in training, whatever one asks for later.

        Returns:
            Images of shape (B, L, C, H, W); the L digits share the decoder's weights.
        """
        B, K, D = capsules_BKD.shape
        L = labels_BL.shape[1]
        classes_K = torch.arange(K, device=labels_BL.device)
        mask_BLK = (labels_BL.unsqueeze(2) == classes_K).to(capsules_BKD.dtype)
        masked_NX = (mask_BLK.unsqueeze(-1) * capsules_BKD.unsqueeze(1)).reshape(B * L, K * D)
        return cast(Tensor, self.layers(masked_NX)).view(B, L, *self.image_shape)
