"""Batches made on the device from counters: item i of epoch e is the same on every machine.

Nothing here keeps a random state: a batch is a function of (seed, step).

Shape suffixes: N items of the split, B of a batch, C channels, H rows, W columns, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsrepro.data.augmentation import augment, central, shift
from capsrepro.data.counters import mix_counters, named_seed
from capsrepro.data.examples import Examples
from capsrepro.schema.augmentation import Augmentation, Operation

_PLACES_SEED = named_seed("places of evaluation")


class Batch(NamedTuple):
    """What a model is trained on.

    Attributes:
        images: float32, shape (B, C, H, W); in [0, 1] unless an operation took them out of it.
        labels: int64, shape (B, L).
        targets: What the decoder should draw for each label, shape (B, L, C, H, W).
    """

    images: Tensor
    labels: Tensor
    targets: Tensor


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
        examples: The split, on the device where batches are made.
        batch_size: B.
        augmentation: What is done to the images.
        order_seed: Of the order of items.
        augmentation_seed: Of the augmentation.

    Raises:
        ValueError: Composites of two digits, which have targets of their own, should be augmented.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        augmentation: Augmentation,
        order_seed: int,
        augmentation_seed: int,
    ) -> None:
        if examples.has_targets and (augmentation.shift_px or augmentation.operations):
            raise ValueError("composites are shifted when they are made, and not augmented")
        self.examples = examples
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.order_seed = order_seed
        self.augmentation_seed = augmentation_seed
        # A batch spans at most a few epochs, and the next batch mostly the same ones.
        self._order = lru_cache(maxsize=4)(self._order_of_epoch)

    @property
    def items(self) -> int:
        """Items per epoch, N."""
        return self.examples.items

    def batch(self, step: int) -> Batch:
        """The batch of this optimiser step, counted from 0."""
        return self.batches(step, 1)

    def batches(self, step: int, count: int) -> Batch:
        """The batches of `count` steps, one behind the other; every image is as in its `batch`."""
        first = step * self.batch_size
        end = first + count * self.batch_size
        epochs = torch.arange(first, end, device=self.examples.device) // self.items
        pieces = []
        for epoch in range(first // self.items, (end - 1) // self.items + 1):
            start = epoch * self.items
            pieces.append(self._order(epoch)[max(first - start, 0) : end - start])
        items = torch.cat(pieces)
        drawn = self.examples.draw(items, epochs)
        if drawn.targets is not None:
            return Batch(_unit(drawn.images), drawn.labels, _unit(drawn.targets))
        numbers = mix_counters(self.augmentation_seed, epochs, items)
        images = _unit(shift(drawn.images, self.augmentation.shift_px, numbers))
        images = augment(images, self.augmentation.operations, numbers)
        return Batch(images, drawn.labels, images.unsqueeze(1))

    def _order_of_epoch(self, epoch: int) -> Tensor:
        items = torch.arange(self.items, device=self.examples.device)
        return mix_counters(self.order_seed, epoch, items).argsort(stable=True)


class EvaluationSplit:
    """A split in order, without anything random.

    Args:
        examples: The split, on the device where batches are made.
        batch_size: Images at a time; does not change any result.
        operations: Those of the training, of which the central crop and standardisation stay.
        count: Images to take; all items once when None. Composites beyond the first N are those
            of the next epochs: each item's next partner.
        shift_px: Largest shift; each image has its own, drawn once and for all. Mostly 0.
        offset_px: How far below and right of the centre images are cropped. Mostly 0, 0.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        operations: Sequence[Operation] = (),
        count: int | None = None,
        shift_px: int = 0,
        offset_px: tuple[int, int] = (0, 0),
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.operations = operations
        self.shift_px = shift_px
        self.offset_px = offset_px
        self.items = examples.items if count is None else count

    def moved(self, offset_px: tuple[int, int]) -> EvaluationSplit:
        """The same images, cropped elsewhere."""
        return self._with(offset_px=offset_px)

    def raw(self) -> EvaluationSplit:
        """The same images in [0, 1], neither cropped nor standardised."""
        return self._with(operations=(), offset_px=(0, 0))

    def first(self, count: int) -> EvaluationSplit:
        """The first images alone; all where there are no more."""
        return self._with(count=min(count, self.items))

    def _with(self, **changes: Any) -> EvaluationSplit:
        same = {
            "batch_size": self.batch_size,
            "operations": self.operations,
            "count": self.items,
            "shift_px": self.shift_px,
            "offset_px": self.offset_px,
        }
        return EvaluationSplit(self.examples, **{**same, **changes})

    def __iter__(self) -> Iterator[Batch]:
        """All batches once; the last one may be smaller."""
        for first in range(0, self.items, self.batch_size):
            end = min(first + self.batch_size, self.items)
            places = torch.arange(first, end, device=self.examples.device)
            N = self.examples.items
            drawn = self.examples.draw(places % N, places // N)
            placed = shift(drawn.images, self.shift_px, mix_counters(_PLACES_SEED, 0, places))
            images = central(_unit(placed), self.operations, self.offset_px)
            targets = images.unsqueeze(1) if drawn.targets is None else _unit(drawn.targets)
            yield Batch(images, drawn.labels, targets)
