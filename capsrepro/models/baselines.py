"""The plain CNNs that Sabour et al. 2017 (DR17) and Hinton et al. 2018 (EM18) compare with.

Shape suffixes: B images, C channels, H rows, W columns, K classes, L labels per image.

The papers state widths and kernels, not padding or dropout rates. Their parameter counts settle the
padding: SAME gives 35,445,522 (DR17 §5: 35.4M), 24,563,978 (DR17 §6.2: 24.56M) and 4,253,349 (EM18
§5: 4.2M) exactly, VALID none of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from capsrepro.models.convolution import Conv2d, Padding, RectifiedConv2d, output_size, start_
from capsrepro.models.losses import CLASSIFICATION_LOSSES, Objective, cross_entropy, present


def _convolution(last: bool) -> tuple[type[Conv2d], nn.Module]:
    """Kind of a convolution and what follows it.

    The last one is read by a fully connected layer, in float32. Where the ReLU is part of the
    convolution, nothing stands in its place: weights are named by their places.
    """
    return (Conv2d, nn.ReLU()) if last else (RectifiedConv2d, nn.Identity())


class BaselineCNN(nn.Module):
    """Convolutions, fully connected layers, dropout, softmax: DR17 §5, where nothing is pooled.

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
        for place, outputs in enumerate(conv_channels, start=1):
            kind, then = _convolution(last=place == len(conv_channels))
            layers += [kind(channels, outputs, conv_kernel, padding=padding), then]
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


class PooledCNN(nn.Module):
    """As `BaselineCNN`, but with a pooling after every convolution, and a choice of loss.

    Each convolution has a kernel size of its own and is followed by ReLU and by 2×2 max-pooling of
    stride 2, which leaves out an odd last row or column.

    Args:
        image_shape: (C, H, W).
        classes: Number of classes K.
        conv_channels: Outputs of each convolution.
        conv_kernels: Side of each kernel in pixels.
        padding: `same` keeps the image size.
        dense_widths: Widths of the fully connected layers.
        dropout: Rate before the last layer.
        classification_loss: A key of `CLASSIFICATION_LOSSES`.
        initial: Starts: conv_std, dense_std, bias (None: torch's).

    Attributes:
        classification_loss: As given.

    Raises:
        ValueError: The images are too small for so many poolings.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        conv_channels: tuple[int, ...],
        conv_kernels: tuple[int, ...],
        padding: Padding,
        dense_widths: tuple[int, ...],
        dropout: float,
        classification_loss: str,
        initial: Mapping[str, float | None],
    ) -> None:
        super().__init__()
        self.classes = classes
        self.classification_loss = classification_loss
        layers: list[nn.Module] = []
        channels, *sides = image_shape
        for place, (outputs, kernel) in enumerate(zip(conv_channels, conv_kernels, strict=True), 1):
            kind, then = _convolution(last=place == len(conv_channels))
            convolution = kind(channels, outputs, kernel, padding=padding)
            start_(convolution, initial["conv_std"], initial["bias"])
            layers += [convolution, then, nn.MaxPool2d(2)]
            sides = [output_size(side, kernel, 1, padding) // 2 for side in sides]
            if min(sides) == 0:
                raise ValueError(f"{len(conv_channels)} poolings leave nothing of them")
            channels = outputs
        layers.append(nn.Flatten())
        widths = [channels * sides[0] * sides[1], *dense_widths, classes]
        for inputs, outputs in itertools.pairwise(widths):
            linear = nn.Linear(inputs, outputs)
            start_(linear, initial["dense_std"], initial["bias"])
            layers += [linear, nn.ReLU()]
        *hidden, last, _ = layers
        self.layers = nn.Sequential(*hidden, nn.Dropout(dropout), last)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of shape (B, K)."""
        return cast(Tensor, self.layers(images_BCHW))

    def objective(self, images_BCHW: Tensor, labels_BL: Tensor, targets_BLCHW: Tensor) -> Objective:
        """Mean of the loss over the batch; `targets_BLCHW` is not used, the network draws nothing.

        Whichever of the cross-entropies it is, its term is called `cross_entropy`.
        """
        logits_BK = self(images_BCHW)
        per_image = CLASSIFICATION_LOSSES[self.classification_loss]
        loss = per_image(logits_BK, present(labels_BL, self.classes)).mean()
        return Objective(loss, {"cross_entropy": loss}, logits_BK)
