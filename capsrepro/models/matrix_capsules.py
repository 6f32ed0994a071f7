"""The network of matrix capsules: Hinton, Sabour, Frosst 2018 (EM18), Section 4, Figure 1.

Shape suffixes: B images, C channels, H rows, W columns, K classes, L labels per image. What departs
from the printed text is a parameter of the named models: see `MatrixCapsulesSpec` in
capsrepro/schema/matrix_capsules.py and docs/deviations.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from capsrepro.models.capsule_layers import (
    POSES,
    Capsules,
    MatrixPrimaryCapsules,
    Pose,
    RoutedCapsules,
)
from capsrepro.models.convolution import RectifiedConv2d, output_size, truncated_normal_
from capsrepro.models.em_routing import EMRouting
from capsrepro.models.losses import CLASSIFICATION_LOSSES, Objective, present, spread_loss
from capsrepro.models.receptive_fields import ReceptiveFields

Coordinates = Literal["none", "right-column", "first-two"]

_TERMS = {"spread": "spread_loss", "margin": "margin_loss", "cross-entropy": "cross_entropy"}
"""Name in the history of each loss that the network may be trained on."""


class MatrixCapsNet(nn.Module):
    """Convolution, primary capsules, layers of ConvCaps and class capsules, routed by EM.

    Args:
        image_shape: (C, H, W), square.
        classes: Number of class capsules K.
        routing: The fields of `EMRouting`.
        class_temperature_share: Factor on the inverse temperature of the class layer.
        initial: Starts: standard deviations conv1_std, pose_std, activation_std, conv_caps_std and
            class_caps_std; constants conv1_bias, conv_beta_a, conv_beta_u, class_beta_a and
            class_beta_u.
        Others: see `MatrixCapsulesSpec` in capsrepro/schema/matrix_capsules.py.

    Attributes:
        classification_loss: The name in `CLASSIFICATION_LOSSES` of the loss it is trained on.
        margin: m of the spread loss; the training loop raises it.

    Raises:
        ValueError: The images are not square or too small for the kernels.
    """

    margin: Tensor

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        conv1_channels: int,
        conv1_kernel: int,
        conv1_stride: int,
        primary_types: int,
        primary_shift: float,
        conv_types: tuple[int, ...],
        conv_kernels: tuple[int, ...],
        conv_strides: tuple[int, ...],
        pose: Pose,
        coordinates: Coordinates,
        coordinate_scale: float,
        routing: Mapping[str, Any],
        class_temperature_share: float,
        shared_beta: bool,
        classification_loss: str,
        loss_reduction: Literal["sum", "mean"],
        initial: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.classes = classes
        self.classification_loss = classification_loss
        self.loss_reduction = loss_reduction
        self.register_buffer("margin", torch.tensor(0.9), persistent=False)
        channels, side, columns = image_shape
        if side != columns:
            raise ValueError(f"{side}x{columns} pixels are not square")
        how = EMRouting(**routing)
        self.conv1 = RectifiedConv2d(channels, conv1_channels, conv1_kernel, stride=conv1_stride)
        self.primary = MatrixPrimaryCapsules(conv1_channels, primary_types, pose, primary_shift)
        grid = Grid(side, 0, 1).under(conv1_kernel, conv1_stride)
        self.conv_caps = nn.Sequential()
        below = primary_types
        for types, kernel, stride in zip(conv_types, conv_kernels, conv_strides, strict=True):
            fields = ReceptiveFields(grid.side, kernel, stride)
            self.conv_caps.append(RoutedCapsules(fields, below, types, pose, how, shared_beta))
            grid, below = grid.under(kernel, stride), types
        self.class_caps = RoutedCapsules(
            ReceptiveFields(grid.side, grid.side, 1),
            below,
            classes,
            pose,
            replace(how, inverse_temperature=how.inverse_temperature * class_temperature_share),
            shared_beta,
            shared_transforms=True,
            offsets_KRC=_coordinate_offsets(grid, side / 2, pose, coordinates, coordinate_scale),
        )
        self._initialise(initial)

    def _initialise(self, initial: Mapping[str, float]) -> None:
        truncated_normal_(self.conv1.weight, initial["conv1_std"])
        truncated_normal_(self.primary.poses.weight, initial["pose_std"])
        truncated_normal_(self.primary.activations.weight, initial["activation_std"])
        if self.conv1.bias is not None:
            nn.init.constant_(self.conv1.bias, initial["conv1_bias"])
        for kind, layers in (("conv", [*self.conv_caps]), ("class", [self.class_caps])):
            for layer in layers:
                truncated_normal_(layer.transforms_KIKJC, initial[f"{kind}_caps_std"])
                nn.init.constant_(layer.beta_a_J, initial[f"{kind}_beta_a"])
                nn.init.constant_(layer.beta_u_J, initial[f"{kind}_beta_u"])

    @property
    def routed_layers(self) -> list[RoutedCapsules]:
        """The layers with routing, in the order of the forward pass."""
        return [*self.conv_caps, self.class_caps]

    def primary_capsules(self, images_BCHW: Tensor) -> Capsules:
        """Primary capsules, which all others are routed from."""
        capsules: Capsules = self.primary(self.conv1(images_BCHW))
        return capsules

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Activations of the class capsules in [0, 1], shape (B, K)."""
        capsules = self.conv_caps(self.primary_capsules(images_BCHW))
        activations_BK: Tensor = self.class_caps(capsules).activations[:, 0]
        return activations_BK

    def objective(self, images_BCHW: Tensor, labels_BL: Tensor, targets_BLCHW: Tensor) -> Objective:
        """Mean of the loss over the batch; `targets_BLCHW` is not used, nothing is drawn."""
        activations_BK = self(images_BCHW)
        present_BK = present(labels_BL, self.classes)
        if self.classification_loss == "spread":
            loss_B = spread_loss(activations_BK, present_BK, self.margin)
        else:
            loss_B = CLASSIFICATION_LOSSES[self.classification_loss](activations_BK, present_BK)
        loss = loss_B.mean()
        if self.loss_reduction == "mean":
            loss = loss / self.classes
        return Objective(loss, {_TERMS[self.classification_loss]: loss}, activations_BK)


class Grid(NamedTuple):
    """A square grid of features over an image.

    Attributes:
        side: Places along one side.
        first: Pixel at which the receptive field of the first place is centred.
        step: Pixels from one centre to the next.
    """

    side: int
    first: float
    step: int

    def under(self, kernel: int, stride: int) -> Grid:
        """The grid that a kernel without padding makes of this one."""
        return Grid(
            output_size(self.side, kernel, stride, "valid"),
            self.first + (kernel - 1) / 2 * self.step,
            self.step * stride,
        )


def _coordinate_offsets(
    grid: Grid, middle: float, pose: Pose, coordinates: Coordinates, scale: float
) -> Tensor | None:
    """Coordinate Addition (EM18 §4.1): the place of each child, to be added to its votes.

    Row and column of the centre of its receptive field, in pixels from `middle`, times `scale`.
    Where they are counted from matters only where means are smoothed from 0, as in EM18-code:
    else it moves all votes for a parent alike.

    Returns:
        Shape (places, R, C); None where nothing is added.
    """
    if coordinates == "none":
        return None
    rows, columns = POSES[pose]
    offsets_KRC = torch.zeros(grid.side**2, rows, columns)
    centres = (grid.first + grid.step * torch.arange(grid.side) - middle) * scale
    row_K, column_K = torch.cartesian_prod(centres, centres).T
    if coordinates == "right-column" and pose == "matrix":
        offsets_KRC[:, 0, -1], offsets_KRC[:, 1, -1] = row_K, column_K
    else:
        offsets_KRC[:, 0, 0], offsets_KRC[:, 0, 1] = row_K, column_K
    return offsets_KRC
