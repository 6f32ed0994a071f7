"""The items of a split on the device, as bytes: stored images, or whatever draws them.

Shape suffixes: N items of the split, B of a batch, C channels, H rows, W columns, L labels.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from capsrepro.data.dataset import Images, Labels


class Drawn(NamedTuple):
    """Some items of a split.

    Attributes:
        images: uint8, shape (B, C, H, W).
        labels: int64, shape (B, L).
        targets: What the decoder should draw for each label, uint8, shape (B, L, C, H, W); None
            when that is the image itself.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor | None


class Examples(Protocol):
    """Whatever batches are drawn from."""

    @property
    def items(self) -> int:
        """Items per epoch, N."""

    @property
    def device(self) -> torch.device:
        """Where items are drawn."""

    @property
    def has_targets(self) -> bool:
        """Whether items are drawn with targets of their own."""

    def draw(self, items: Tensor, epochs: Tensor) -> Drawn:
        """Items 0..N-1 as they are in the given epochs; both int64, shape (B,)."""


class StoredExamples:
    """Images kept on the device; the same in every epoch.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: uint8, shape (N, L).
        device: Where to keep them.
    """

    has_targets = False

    def __init__(self, images: Images, labels: Labels, device: torch.device) -> None:
        self.device = device
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device).long()

    @property
    def items(self) -> int:
        """Items per epoch, N."""
        return len(self.images)

    def draw(self, items: Tensor, epochs: Tensor) -> Drawn:
        """The images and labels of the items."""
        return Drawn(self.images[items], self.labels[items], None)
