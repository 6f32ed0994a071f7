"""The plain CNN that Sabour et al. 2017 (DR17), Section 5, compares with.

Shape suffixes: B images, C channels, H rows, W columns, K classes, L labels per image.

The paper states widths and kernel, not padding, pooling or dropout rate; its 35.4M parameters are
reached exactly (35,445,522) with SAME padding and no pooling.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from capsrepro.models.convolution import Conv2d, Padding, output_size
from capsrepro.models.losses import Objective, cross_entropy, present


class BaselineCNN(nn.Module):
    """Convolutions, fully connected layers, dropout, softmax.

    Args:
        image_shape: (C, H, W).
        classes: Number of classes K.
        conv_channels: Outputs of each convolution.
        conv_kernel: Side of every kernel in pixels.
        padding: `same` keeps the image size.
        dense_widths: Widths of the fully connected layers.
        dropout: Rate before the last layer.

    Attributes:
        classification_loss: The name in `CLASSIFICATION_LOSSES` of the loss it is trained on.
    """

    classification_loss = "cross-entropy"

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        conv_channels: tuple[int, ...],
        conv_kernel: int,
        padding: Padding,
        dense_widths: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = []
        channels, rows, columns = image_shape
        for outputs in conv_channels:
            layers += [Conv2d(channels, outputs, conv_kernel, padding=padding), nn.ReLU()]
            rows, columns = (output_size(n, conv_kernel, 1, padding) for n in (rows, columns))
            channels = outputs
        layers.append(nn.Flatten())
        inputs = channels * rows * columns
        for width in dense_widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(inputs, classes))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of shape (B, K) for images in [0, 1]."""
        return cast(Tensor, self.layers(images_BCHW))

    def objective(self, images_BCHW: Tensor, labels_BL: Tensor, targets_BLCHW: Tensor) -> Objective:
        """Mean cross-entropy; `targets_BLCHW` is not used, the network draws nothing."""
        logits_BK = self(images_BCHW)
        loss = cross_entropy(logits_BK, present(labels_BL, self.classes)).mean()
        return Objective(loss, {"cross_entropy": loss}, logits_BK)
