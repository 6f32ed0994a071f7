"""Crops beside the central one, against slices of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capsrepro.data.augmentation import central
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.schema.augmentation import Crop, Flip, Operation, Standardise

FLIP, STANDARDISE = Flip(op="flip"), Standardise(op="standardise")


def crop(size_px: int) -> Crop:
    return Crop(op="crop", size_px=size_px)


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width", "size"), [(10, 10, 6), (11, 11, 6), (12, 10, 6)])
@pytest.mark.parametrize("down", [-2, 0, 1])
@pytest.mark.parametrize("right", [-1, 0, 2])
def test_the_window_moves_with_the_offset(
    height: int, width: int, size: int, down: int, right: int
) -> None:
    pixels = images(height, width)
    top, left = (height - size) // 2 + down, (width - size) // 2 + right
    expected = pixels[:, :, top : top + size, left : left + size]
    found = central(pixels, [FLIP, crop(size)], (down, right))
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_what_stands_before_and_behind_the_crop_stays_there() -> None:
    pixels = images(10, 10)
    cut = pixels[:, :, 3:9, 1:7]
    mean, spread = cut.mean((1, 2, 3), keepdim=True), cut.std((1, 2, 3), correction=0, keepdim=True)
    behind = central(pixels, [crop(6), STANDARDISE], (1, -1))
    torch.testing.assert_close(behind, (cut - mean) / spread)
    before = central(pixels, [STANDARDISE, crop(6)], (1, -1))
    assert torch.equal(before, central(pixels, [STANDARDISE])[:, :, 3:9, 1:7])
    assert not torch.allclose(before, behind)


@pytest.mark.parametrize("offset", [(-3, 0), (3, 0), (0, -3), (0, 3)])
def test_a_window_beyond_the_image_is_refused(offset: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"no window of 6 pixels lies .* off the centre of 10×10"):
        central(images(10, 10), [crop(6)], offset)


def test_without_a_crop_there_is_nothing_to_move() -> None:
    with pytest.raises(ValueError, match="not cropped"):
        central(images(10, 10), [STANDARDISE], (0, 1))


def test_a_moved_split_is_the_same_split_cropped_elsewhere() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (7, 1, 10, 10), np.uint8)
    labels = np.arange(7, dtype=np.uint8)[:, None]
    operations: tuple[Operation, ...] = (crop(6),)
    split = EvaluationSplit(
        StoredExamples(stored, labels, torch.device("cpu")),
        batch_size=4,
        operations=operations,
        count=5,
    )
    moved = list(split.moved((1, 2)))
    assert [len(batch.images) for batch in moved] == [4, 1]
    pixels = torch.cat([batch.images for batch in moved])
    assert torch.equal(pixels, torch.from_numpy(stored[:5, :, 3:9, 4:10]).float() / 255)
    assert torch.cat([batch.labels for batch in moved])[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(next(iter(split)).images, next(iter(split.moved((0, 0)))).images)


def test_shifts_of_evaluation_come_along() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (7, 1, 10, 10), np.uint8)
    examples = StoredExamples(stored, np.zeros((7, 1), np.uint8), torch.device("cpu"))
    whole = EvaluationSplit(examples, batch_size=7, shift_px=2)
    split = EvaluationSplit(examples, batch_size=7, operations=[crop(6)], shift_px=2)
    (shifted,), (moved,) = whole, split.moved((1, 0))
    assert torch.equal(moved.images, shifted.images[:, :, 3:9, 2:8])
