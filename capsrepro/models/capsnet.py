"""CapsNet: Sabour et al. 2017 (DR17, arXiv 1710.09829v2), Section 4, Figures 1 and 2.

Shape suffixes: B images, C channels, H rows, W columns, K classes, L labels per image,
I primary capsules, E their dimensions, D dimensions of a class capsule.

Departures from the printed text, all parameters of named models:
    primary_scale 1/32, class_bias, margin_loss_reduction half-mean: the authors' released code.
    routing_gradient detached: what several re-implementations do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from capsrepro.models.convolution import (
    Conv2d,
    Padding,
    RectifiedConv2d,
    output_size,
    truncated_normal_,
)
from capsrepro.models.decoder import Decoder
from capsrepro.models.gpu.primary_cuda import squashed_maps
from capsrepro.models.gpu.routing_cuda import fused_dynamic_routing
from capsrepro.models.losses import (
    MarginReduction,
    Objective,
    margin_loss,
    present,
    reconstruction_sse,
)
from capsrepro.models.routing import Gradient, length


class PrimaryCapsules(nn.Module):
    """A convolution whose channels are read as `types` capsules of `dim` numbers at each place.

    With `scale` 1/types and its bias it is the authors' code, which routes once over the output
    types by a uniform softmax; with scale 1 it is the paper's text.
    """

    def __init__(
        self,
        inputs: int,
        types: int,
        dim: int,
        kernel: int,
        stride: int,
        padding: Padding,
        scale: float,
    ) -> None:
        super().__init__()
        self.types, self.dim, self.scale = types, dim, scale
        self.convolution = Conv2d(
            inputs, types * dim, kernel, stride=stride, padding=padding, bias=False
        )
        fan_in = inputs * kernel * kernel
        self.bias = nn.Parameter(torch.empty(types * dim).uniform_(-(fan_in**-0.5), fan_in**-0.5))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Squashed capsules u_BEI; the I = types · rows · columns children run along the end."""
        maps_BOHW = self.convolution(features_BCHW)
        return squashed_maps(maps_BOHW, self.bias, self.types, self.dim, self.scale)


class CapsNet(nn.Module):
    """Conv1, PrimaryCaps, class capsules by dynamic routing, and an optional decoder.

    Args:
        image_shape: (C, H, W).
        classes: Number of class capsules K.
        initial: Starts: conv1_std, primary_std, transform_std, decoder_std, bias (None: torch's).
        Others: see `CapsNetSpec` in capsrepro/schema/models.py.

    Attributes:
        classification_loss: The name in `CLASSIFICATION_LOSSES` of the loss it is trained on.
    """

    classification_loss = "margin"

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        conv1_channels: int,
        conv1_kernel: int,
        primary_types: int,
        primary_dim: int,
        primary_kernel: int,
        primary_stride: int,
        padding: Padding,
        class_dim: int,
        routing_iterations: int,
        routing_gradient: Gradient,
        primary_scale: float,
        class_bias: bool,
        none_of_the_above: bool,
        margin_loss_reduction: MarginReduction,
        decoder_widths: tuple[int, ...],
        reconstruction_weight: float,
        initial: Mapping[str, float | None],
    ) -> None:
        super().__init__()
        self.classes = classes
        self.routing_iterations = routing_iterations
        self.routing_gradient: Gradient = routing_gradient
        self.none_of_the_above = none_of_the_above
        self.margin_loss_reduction: MarginReduction = margin_loss_reduction
        self.reconstruction_weight = reconstruction_weight

        self.conv1 = RectifiedConv2d(image_shape[0], conv1_channels, conv1_kernel, padding=padding)
        geometry = (primary_types, primary_dim, primary_kernel, primary_stride)
        self.primary = PrimaryCapsules(conv1_channels, *geometry, padding, primary_scale)
        rows, columns = (
            output_size(
                output_size(side, conv1_kernel, 1, padding), primary_kernel, primary_stride, padding
            )
            for side in image_shape[1:]
        )
        children = primary_types * rows * columns
        self.transforms_KEID = nn.Parameter(torch.empty(classes, primary_dim, children, class_dim))
        self.bias_KD = nn.Parameter(torch.zeros(classes, class_dim)) if class_bias else None
        self._initialise(initial)
        self.decoder = (
            Decoder(
                classes,
                class_dim,
                image_shape,
                decoder_widths,
                std=initial["decoder_std"],
                bias=initial["bias"],
            )
            if decoder_widths
            else None
        )

    def _initialise(self, initial: Mapping[str, float | None]) -> None:
        starts = [
            (self.conv1.weight, initial["conv1_std"]),
            (self.primary.convolution.weight, initial["primary_std"]),
            (self.transforms_KEID, initial["transform_std"]),
        ]
        for parameter, std in starts:
            if std is not None:
                truncated_normal_(parameter, std)
        if initial["bias"] is not None:
            for bias in (self.conv1.bias, self.primary.bias, self.bias_KD):
                if bias is not None:
                    nn.init.constant_(bias, initial["bias"])

    def primary_capsules(self, images_BCHW: Tensor) -> Tensor:
        """Squashed primary capsules u_BEI, which the class capsules are routed from."""
        capsules_BEI: Tensor = self.primary(self.conv1(images_BCHW))
        return capsules_BEI

    def class_capsules(self, images_BCHW: Tensor) -> Tensor:
        """Class capsules v_BKD of images in [0, 1]."""
        return fused_dynamic_routing(
            self.primary_capsules(images_BCHW),
            self.transforms_KEID,
            self.routing_iterations,
            bias_JD=self.bias_KD,
            gradient=self.routing_gradient,
            none_of_the_above=self.none_of_the_above,
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Capsule lengths in [0, 1), shape (B, K); the longest capsule is the prediction."""
        return length(self.class_capsules(images_BCHW))

    def objective(self, images_BCHW: Tensor, labels_BL: Tensor, targets_BLCHW: Tensor) -> Objective:
        """Margin loss plus weighted reconstruction loss, batch means.

        Args:
            images_BCHW: Values in [0, 1].
            labels_BL: The L classes in each image.
            targets_BLCHW: What the decoder should draw for each of them.
        """
        capsules_BKD = self.class_capsules(images_BCHW)
        lengths_BK = length(capsules_BKD)
        margin = margin_loss(
            lengths_BK, present(labels_BL, self.classes), self.margin_loss_reduction
        ).mean()
        if self.decoder is None:
            return Objective(margin, {"margin_loss": margin}, lengths_BK)
        drawn_BLCHW = self.decoder(capsules_BKD, labels_BL)
        sse = reconstruction_sse(drawn_BLCHW, targets_BLCHW).mean()
        loss = margin + self.reconstruction_weight * sse
        return Objective(loss, {"margin_loss": margin, "reconstruction_sse": sse}, lengths_BK)
