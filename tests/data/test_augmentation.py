"""What is done to images: against the papers' arithmetic, and against TensorFlow's conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from capsrepro.config import load_params
from capsrepro.data.augmentation import augment, black_and_white, central, seen_shape, shift
from capsrepro.data.batches import EvaluationSplit, TrainingStream
from capsrepro.data.counters import mix, uniform
from capsrepro.data.examples import StoredExamples
from capsrepro.schema.augmentation import (
    Augmentation,
    Brightness,
    Contrast,
    Crop,
    Flip,
    Standardise,
)

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")
FLIP, STANDARDISE = Flip(op="flip"), Standardise(op="standardise")
BRIGHTNESS = Brightness(op="brightness", max_delta="63/255")
CONTRAST = Contrast(op="contrast", lower=0.2, upper=1.8)


def crop(size_px: int) -> Crop:
    return Crop(op="crop", size_px=size_px)


def random_images(count: int, channels: int = 2, side: int = 6) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def numbers(count: int) -> torch.Tensor:
    return mix(torch.arange(count))


def marked(count: int, side: int) -> torch.Tensor:
    """Pixel (row, column) has the value side·row + column: a window tells where it was cut."""
    return torch.arange(side**2).float().view(1, 1, side, side).expand(count, 1, side, side)


def chi_squared(values: torch.Tensor, cells: int) -> float:
    counts = torch.bincount(values, minlength=cells)
    expected = len(values) / cells
    return float(((counts - expected) ** 2 / expected).sum())


def test_crops_are_whole_windows_from_every_place_alike() -> None:
    cut = augment(marked(20_000, 6), [crop(4)], numbers(20_000))
    assert cut.shape == (20_000, 1, 4, 4)
    corner = cut[:, :, :1, :1]
    window = torch.arange(4).view(4, 1) * 6 + torch.arange(4)
    assert torch.equal(cut - corner, window.float().expand_as(cut))
    places = corner.flatten().long() // 6 * 3 + corner.flatten().long() % 6
    # 8 degrees of freedom: beyond 30 once in 5,000.
    assert chi_squared(places, 9) < 30


def test_half_of_the_images_are_flipped_and_the_others_untouched() -> None:
    images = random_images(2_000)
    flipped = augment(images, [FLIP], numbers(2_000))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert 900 < same.sum() < 1100


def test_brightness_adds_one_number_and_clips_nothing() -> None:
    images = random_images(2_000)
    delta = augment(images, [BRIGHTNESS], numbers(2_000)) - images
    one = delta[:, :1, :1, :1]
    torch.testing.assert_close(delta, one.expand_as(delta), rtol=0, atol=1e-6)
    assert one.abs().max() <= 63 / 255 + 1e-6
    assert one.min() < -0.98 * 63 / 255
    assert one.max() > 0.98 * 63 / 255
    assert abs(one.mean()) < 0.01


def test_contrast_multiplies_about_the_mean_of_each_channel() -> None:
    images = random_images(2_000)
    found = augment(images, [CONTRAST], numbers(2_000))
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(found.mean((2, 3), keepdim=True), mean, rtol=0, atol=1e-5)
    factor = ((found - mean) / (images - mean)).flatten(1).median(1).values
    expected = (images - mean) * factor.view(-1, 1, 1, 1) + mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert 0.2 <= factor.min() < 0.21
    assert 1.79 < factor.max() <= 1.8


def test_standardisation_is_over_all_channels_and_survives_one_colour() -> None:
    images = random_images(10, channels=3) * torch.tensor([0.1, 1, 2]).view(1, 3, 1, 1)
    found = augment(images, [STANDARDISE], numbers(10)).numpy().reshape(10, -1)
    plain = images.numpy().reshape(10, -1).astype(np.float64)
    mean, spread = plain.mean(1, keepdims=True), plain.std(1, keepdims=True)
    np.testing.assert_allclose(found, (plain - mean) / spread, atol=1e-5)
    grey = torch.full((1, 1, 4, 4), 0.5)
    assert torch.equal(augment(grey, [STANDARDISE], numbers(1)), torch.zeros(1, 1, 4, 4))
    # Spread below 1/√16 grey levels: divided by that, as TensorFlow does with 0..255.
    almost = grey.clone()
    almost[0, 0, 0, 0] += 1e-4
    found = augment(almost, [STANDARDISE], numbers(1))
    assert found.max().item() == pytest.approx(1e-4 * 15 / 16 * 255 * 4, rel=1e-3)


def test_operations_are_applied_in_their_order() -> None:
    images, chosen = random_images(4), numbers(4)
    one = augment(images, [CONTRAST, crop(3), STANDARDISE], chosen)
    other = augment(images, [STANDARDISE, CONTRAST, crop(3)], chosen)
    assert one.shape == other.shape == (4, 2, 3, 3)
    torch.testing.assert_close(one.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    assert other.mean((1, 2, 3)).abs().max() > 0.1


def test_operations_draw_independently_of_each_other() -> None:
    chosen = numbers(4_000)
    images = random_images(1).expand(4_000, 2, 6, 6)
    flipped = (augment(images, [FLIP, FLIP], chosen) == images).flatten(1).all(1)
    # The same number twice would undo every flip.
    assert 1_800 < flipped.sum() < 2_200


@pytest.mark.parametrize(
    "operations", [[], [crop(4)], [STANDARDISE], [STANDARDISE, crop(4)], [crop(4), STANDARDISE]]
)
def test_black_and_white_go_where_such_pixels_go(operations: list) -> None:
    """The central pixels of two images are made black and white, and looked up afterwards."""
    images = random_images(9)
    images[:, 0, 2, 2], images[:, 1, 3, 3] = 0, 1
    black, white = black_and_white(images, [*operations, FLIP, BRIGHTNESS])
    assert black.shape == white.shape == (9, 1, 1, 1)
    seen = central(images, operations)
    middle = 2 if seen.shape[2] == 6 else 1
    torch.testing.assert_close(seen[:, 0, middle, middle], black[:, 0, 0, 0])
    torch.testing.assert_close(seen[:, 1, middle + 1, middle + 1], white[:, 0, 0, 0])


@pytest.mark.parametrize(("size", "corner"), [(4, 7), (3, 7), (6, 0)])
def test_evaluation_crops_the_centre_and_leaves_out_what_is_random(size: int, corner: int) -> None:
    images = marked(2, 6)
    found = central(images, [FLIP, BRIGHTNESS, CONTRAST, crop(size)])
    assert found.shape == (2, 1, size, size)
    assert found[0, 0, 0, 0] == corner
    standardised = central(images, [BRIGHTNESS, STANDARDISE])
    assert standardised.mean().abs() < 1e-6
    assert standardised.std(correction=0).item() == pytest.approx(1)


def test_shape_that_a_network_sees() -> None:
    assert seen_shape((3, 32, 32), [FLIP, crop(24), STANDARDISE]) == (3, 24, 24)
    assert seen_shape((1, 28, 28), []) == (1, 28, 28)
    with pytest.raises(ValueError, match="8×8 pixels have no window of 24"):
        seen_shape((1, 8, 8), [crop(24)])


def test_uniform_numbers_fill_the_interval_without_reaching_one() -> None:
    values = uniform(numbers(100_000))
    assert 0 <= values.min() < 1e-4
    assert 1 - 1e-4 < values.max() < 1
    assert uniform(torch.tensor([2**63 - 1])) < 1
    assert chi_squared((values * 100).long(), 100) < 160


def test_shift_of_zero_is_the_image_itself() -> None:
    images = random_images(2)
    assert shift(images, 0, numbers(2)) is images


@pytest.mark.parametrize(
    ("dataset", "reading", "order"),
    [
        ("cifar10", "sabour2017-text", "crop"),
        ("cifar10", "sabour2017-code", "crop flip brightness contrast standardise"),
        ("smallnorb", "sabour2017-text", "crop"),
        ("smallnorb", "sabour2017-code", "brightness contrast crop standardise"),
        ("smallnorb", "hinton2018-text", "standardise crop brightness contrast"),
        ("smallnorb", "hinton2018-code", "brightness contrast crop standardise"),
        ("smallnorb-monocular", "gritzman2019", "standardise crop brightness contrast"),
    ],
)
def test_readings_have_the_order_of_their_source(dataset: str, reading: str, order: str) -> None:
    operations = PARAMS.augmentations[dataset][reading].operations
    assert [operation.op for operation in operations] == order.split()
    by_name = {operation.op: operation for operation in operations}
    assert by_name["crop"].size_px == (24 if dataset == "cifar10" else 32)
    if reading.endswith("code"):
        assert by_name["brightness"].max_delta * 255 == 63
        assert (by_name["contrast"].lower, by_name["contrast"].upper) == (0.2, 1.8)


def test_streams_augment_in_training_and_crop_centrally_in_evaluation() -> None:
    images = (random_images(20, 3, 32) * 255).to(torch.uint8).numpy()
    examples = StoredExamples(images, np.zeros((20, 1), np.uint8), CPU)
    reading = PARAMS.augmentations["cifar10"]["sabour2017-code"]
    stream = TrainingStream(
        examples, batch_size=20, augmentation=reading, order_seed=0, augmentation_seed=0
    )
    first, second = stream.batch(0), stream.batch(1)
    assert first.images.shape == (20, 3, 24, 24)
    assert torch.equal(first.targets[:, 0], first.images)
    assert not torch.equal(first.images, second.images)
    shown = next(iter(EvaluationSplit(examples, batch_size=20, operations=reading.operations)))
    expected = torch.from_numpy(images)[:, :, 4:28, 4:28].double()
    mean, spread = expected.mean((1, 2, 3), keepdim=True), expected.std((1, 2, 3), correction=0)
    expected = (expected - mean) / spread.view(-1, 1, 1, 1)
    torch.testing.assert_close(shown.images, expected.float(), rtol=0, atol=1e-5)


def test_every_data_set_says_what_a_network_sees_of_it() -> None:
    assert PARAMS.augmentations.keys() == PARAMS.datasets.keys()
    assert all(
        isinstance(augmentation, Augmentation)
        for readings in PARAMS.augmentations.values()
        for augmentation in readings.values()
    )


def test_raw_images_and_the_first_of_them() -> None:
    images = (255 * random_images(7)).to(torch.uint8).numpy()
    examples = StoredExamples(images, np.zeros((7, 1), np.uint8), CPU)
    split = EvaluationSplit(examples, batch_size=3, operations=[crop(4), STANDARDISE])
    split = split.moved((1, -1))
    raw = torch.cat([batch.images for batch in split.raw()])
    assert torch.equal(raw, torch.from_numpy(images).float() / 255)
    assert split.raw().offset_px == (0, 0)
    some = torch.cat([batch.images for batch in split.first(5)])
    assert torch.equal(some, torch.cat([batch.images for batch in split])[:5])
    assert split.first(5).offset_px == (1, -1)
    assert (split.first(5).items, split.first(99).items) == (5, 7)
