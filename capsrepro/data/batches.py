"""Batches made on the device from counters: item i of epoch e is the same on every machine.

Nothing here keeps a random state. A batch is a function of (seed, step), so a resumed run sees
exactly what an uninterrupted one would have seen, and CPU and GPU see the same.

Shape suffixes: N items of the split, B of a batch, C channels, H rows, W columns, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from capsrepro.data.dataset import Images, Labels

_MASK = (1 << 64) - 1


class Batch(NamedTuple):
    """What a model is trained on.

    Attributes:
        images: float32 in [0, 1], shape (B, C, H, W).
        labels: int64, shape (B, L).
        targets: What the decoder should draw for each label, shape (B, L, C, H, W).
    """

    images: Tensor
    labels: Tensor
    targets: Tensor


def mix(counters: Tensor) -> Tensor:
    """Scramble 64-bit counters into independent-looking 63-bit numbers (the splitmix64 finaliser).

    Integer arithmetic only, so every device gives the same bits.

    Args:
        counters: int64, any shape; distinct inputs give distinct 64-bit states.

    Returns:
        int64 in [0, 2^63), same shape.
    """
    state = counters + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    return (state ^ _shift_right(state, 31)) & ((1 << 63) - 1)


def _signed(value: int) -> int:
    """The same 64 bits read as a signed number, which is what torch has."""
    return value - (1 << 64) if value >> 63 else value


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own is arithmetic and would smear the sign bit."""
    return (values >> bits) & (_MASK >> bits)


def mix_counters(seed: int, epoch: Tensor | int, item: Tensor) -> Tensor:
    """One number in [0, 2^63) for each (seed, epoch, item), shape of `item`."""
    stream = mix(torch.as_tensor(_signed(seed & _MASK), device=item.device) + epoch)
    return mix(stream ^ mix(item))


def _unit(bytes_BCHW: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1].

    The divisor is a tensor on the device: by a Python number, CUDA multiplies with the reciprocal,
    and half of the 256 values would differ from the CPU's in their last bit.
    """
    return bytes_BCHW.float() / torch.full((), 255.0, device=bytes_BCHW.device)


class TrainingStream:
    """An endless sequence of augmented batches over one split.

    Every epoch visits every item once, in an order of its own; a batch may span two epochs, so
    that no item is dropped and all batches have one shape.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: uint8, shape (N, L).
        batch_size: B.
        shift_px: Largest random shift along each axis; the border is filled with black.
        order_seed: Of the order of items.
        augmentation_seed: Of the shifts.
        device: Where batches are made.
    """

    def __init__(
        self,
        images: Images,
        labels: Labels,
        *,
        batch_size: int,
        shift_px: int,
        order_seed: int,
        augmentation_seed: int,
        device: torch.device,
    ) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device).long()
        self.batch_size = batch_size
        self.shift_px = shift_px
        self.order_seed = order_seed
        self.augmentation_seed = augmentation_seed
        # A batch spans at most a few epochs, and the next batch mostly the same ones.
        self._order = lru_cache(maxsize=4)(self._order_of_epoch)

    @property
    def items(self) -> int:
        """Items per epoch, N."""
        return len(self.images)

    def batch(self, step: int) -> Batch:
        """The batch of this optimiser step, counted from 0."""
        first = step * self.batch_size
        end = first + self.batch_size
        epochs = torch.arange(first, end, device=self.images.device) // self.items
        pieces = []
        for epoch in range(first // self.items, (end - 1) // self.items + 1):
            start = epoch * self.items
            pieces.append(self._order(epoch)[max(first - start, 0) : end - start])
        items = torch.cat(pieces)
        images = _unit(self._shifted(items, epochs))
        return Batch(images, self.labels[items], images.unsqueeze(1))

    def _order_of_epoch(self, epoch: int) -> Tensor:
        items = torch.arange(self.items, device=self.images.device)
        return mix_counters(self.order_seed, epoch, items).argsort(stable=True)

    def _shifted(self, items: Tensor, epochs: Tensor) -> Tensor:
        """Uniform whole-pixel shifts, drawn for each (epoch, item)."""
        images_BCHW = self.images[items]
        if self.shift_px == 0:
            return images_BCHW
        choices = 2 * self.shift_px + 1
        numbers = mix_counters(self.augmentation_seed, epochs, items) % choices**2
        down, right = numbers // choices, numbers % choices
        H, W = images_BCHW.shape[2:]
        padded = torch.nn.functional.pad(images_BCHW, [self.shift_px] * 4)
        rows_BH = torch.arange(H, device=items.device) + down.unsqueeze(1)
        columns_BW = torch.arange(W, device=items.device) + right.unsqueeze(1)
        every = torch.arange(len(items), device=items.device).view(-1, 1, 1)
        window_BHWC = padded.permute(0, 2, 3, 1)[
            every, rows_BH.unsqueeze(2), columns_BW.unsqueeze(1)
        ]
        return window_BHWC.permute(0, 3, 1, 2).contiguous()


class EvaluationSplit:
    """A split as it is, in order, without augmentation.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: uint8, shape (N, L).
        batch_size: Images at a time; does not change any result.
        device: Where batches are made.
    """

    def __init__(
        self, images: Images, labels: Labels, *, batch_size: int, device: torch.device
    ) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device).long()
        self.batch_size = batch_size

    @property
    def items(self) -> int:
        """Images of the split, N."""
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        """All batches once; the last one may be smaller."""
        for first in range(0, self.items, self.batch_size):
            chosen = slice(first, first + self.batch_size)
            images = _unit(self.images[chosen])
            yield Batch(images, self.labels[chosen], images.unsqueeze(1))
