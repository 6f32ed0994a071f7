"""Several crops of an image: where they lie, and what becomes of their activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_capsnets import CPU, capsnet
from small_matcaps import matcaps
from torch import Tensor, nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.errors import CapsreproError
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.multicrop import crop_rings, measure_crops
from capsrepro.schema.augmentation import Contrast, Crop, Operation, Standardise

CROP, STANDARDISE = Crop(op="crop", size_px=8), Standardise(op="standardise")
CONTRAST = Contrast(op="contrast", lower=0.2, upper=1.8)
SIDE, COUNT = 14, 40


def cropped(
    operations: tuple[Operation, ...] = (CROP,), batch_size: int = 9, labels: Any = None
) -> EvaluationSplit:
    images = np.random.default_rng(1).integers(0, 256, (COUNT, 1, SIDE, SIDE), np.uint8)
    labels = np.arange(COUNT) % 5 if labels is None else labels
    examples = StoredExamples(images, np.array(labels, np.uint8)[:, None], CPU)
    return EvaluationSplit(examples, batch_size=batch_size, operations=operations)


def test_thirteen_crops_in_the_order_of_their_distance() -> None:
    rings = list(crop_rings([1, 2, 3]))
    assert [len(ring) for ring in rings] == [1, 4, 4, 4]
    assert rings[0] == [(0, 0)]
    for distance, ring in enumerate(rings[1:], start=1):
        assert set(ring) == {(a, b) for a in (-distance, distance) for b in (-distance, distance)}


def summed(model: nn.Module, offsets: list[tuple[int, int]], *, standardise: bool) -> np.ndarray:
    """Shares of the classes in each crop, cut out by slicing and added up in float64."""
    pixels = cropped().examples.draw(torch.arange(COUNT), torch.zeros(COUNT)).images.float() / 255
    total = np.zeros((COUNT, 5))
    for down, right in offsets:
        cut = pixels[:, :, 3 + down : 11 + down, 3 + right : 11 + right]
        if standardise:
            variance, mean = torch.var_mean(cut, (1, 2, 3), correction=0, keepdim=True)
            cut = (cut - mean) / variance.sqrt()
        with torch.no_grad():
            activations = model(cut.contiguous()).double().numpy()
        total += activations / activations.sum(1, keepdims=True)
    return total


@pytest.mark.parametrize("operations", [(CROP,), (CONTRAST, CROP, STANDARDISE)], ids=len)
@pytest.mark.parametrize("batch_size", [9, COUNT])
def test_errors_by_one_five_nine_and_thirteen_crops(
    operations: tuple[Operation, ...], batch_size: int
) -> None:
    model = matcaps()
    rings = list(crop_rings([1, 2, 3]))
    expected = []
    for count in range(1, 5):
        offsets = [offset for ring in rings[:count] for offset in ring]
        total = summed(model, offsets, standardise=STANDARDISE in operations)
        expected.append(100 * float(np.mean(total.argmax(1) != np.arange(COUNT) % 5)))
    metrics, curves = measure_crops(model.train(), cropped(operations, batch_size), [1, 2, 3])
    assert not model.training
    assert curves == {"crops": [1, 5, 9, 13], "test_error_pct": expected}
    assert len(set(expected)) > 1
    assert metrics["test_error_pct"] == expected[-1]
    own = measure_accuracy(model, cropped(operations))
    assert metrics["central_errors"] == own["test_errors"]
    assert metrics["test_images"] == own["test_images"] == COUNT


class Told(nn.Module):
    """Activations that are written into the corner of the window."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, 0, 0, :3]


def test_a_crop_with_small_activations_has_the_same_say() -> None:
    """Unequal sums: added up as they are, the one bright crop would decide."""
    images = np.zeros((1, 1, 10, 10), np.uint8)
    images[0, 0, 1, 1:4] = 200, 250, 0  # the central window: class 1, bright and undecided
    for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
        images[0, 0, row, column] = 10  # four that see class 0 alone, and darkly
    examples = StoredExamples(images, np.zeros((1, 1), np.uint8), CPU)
    split = EvaluationSplit(examples, batch_size=1, operations=(CROP,))
    metrics, curves = measure_crops(Told(), split, [1])
    assert curves == {"crops": [1, 5], "test_error_pct": [100, 0]}
    assert metrics["central_errors"] == 1


def test_no_activation_at_all_is_a_vote_for_nothing() -> None:
    images = np.zeros((2, 1, 10, 10), np.uint8)
    images[1, 0, 1, 2] = 9
    examples = StoredExamples(images, np.array([[0], [1]], np.uint8), CPU)
    split = EvaluationSplit(examples, batch_size=2, operations=(CROP,))
    assert measure_crops(Told(), split, [1])[1]["test_error_pct"] == [0, 0]


def test_lengths_of_capsules_can_be_summed_too() -> None:
    metrics, _ = measure_crops(capsnet(), cropped(), [1])
    assert 0 <= metrics["test_error_pct"] <= 100


def test_images_that_are_not_cropped_are_refused() -> None:
    with pytest.raises(CapsreproError) as caught:
        measure_crops(matcaps(), cropped((STANDARDISE,)), [1])
    assert str(caught.value) == (
        "the images cannot be classified by several crops: they are not cropped; ask for smaller "
        "offsets in the `crops` of a protocol whose images are cropped."
    )


def test_a_crop_beyond_the_image_is_refused_before_anything_is_classified() -> None:
    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    with pytest.raises(CapsreproError, match=r"no window of 8 pixels lies .* off the centre"):
        measure_crops(Never(), cropped(), [1, 4])
