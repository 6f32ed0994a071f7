"""The generated stand-in for affNIST: its maps, its pixels and its numbers."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import affine

from capsrepro.data import affmnist, affnist, mnist
from capsrepro.data.affmnist import DATASET, apply_maps, draw_maps, prepare, transformed
from capsrepro.errors import CapsreproError, UsageError

DATASETS_FOLDER = Path(__file__).parents[3] / "shared/datasets"

real_mnist = pytest.mark.skipif(
    not (DATASETS_FOLDER / "mnist").is_dir(), reason=f"{DATASETS_FOLDER}/mnist is not there"
)


def blobs(count):
    """Lopsided digits of 20×20 pixels, here and there within 28×28, by whole-number arithmetic."""
    places = np.arange(20)
    texture = np.add.outer(places**3 * 7, places**2 * 11)
    images = np.zeros((count, 1, 28, 28), np.uint8)
    for index, image in enumerate(images):
        top, left = index % 9, index * 5 % 9
        ink = np.add.outer((places - 9) ** 2 * (1 + index % 3), (places - 10) ** 2) < 90
        image[0, top : top + 20, left : left + 20] = (texture + index * 31) % 256 * ink
    return images


def maps_of(images, transforms, seed=0):
    return draw_maps(torch.from_numpy(images[:, 0] > 0), 0, transforms, seed)


def exactly(image, inverse, translation, side):
    """One map by whole numbers alone, on a frame of `side` pixels about the same centre."""
    unit = 1 << 21  # 12 bits of the inverse, 8 of the translation, 1 of the half pixel
    matrix = [[int(entry * 4096) for entry in row] for row in inverse.tolist()]
    shift = [int(entry * 256) for entry in translation.tolist()]
    padded = np.pad(image.astype(np.int64), 70)
    line = np.arange(side) * 2 - (side - 1)  # half pixels
    x, y = (place * 256 - 2 * by for place, by in zip(np.meshgrid(line, line), shift, strict=True))
    column, row = (a * x + b * y + (27 + 2 * 70) * unit // 2 for a, b in matrix)
    (left, right_part), (top, low_part) = divmod(column, unit), divmod(row, unit)
    total = sum(
        padded[top + down, left + over]
        * (low_part if down else unit - low_part)
        * (right_part if over else unit - right_part)
        for down in (0, 1)
        for over in (0, 1)
    )
    whole, rest = divmod(total, unit**2)
    return whole + ((2 * rest > unit**2) | ((2 * rest == unit**2) & (whole % 2 == 1)))


def test_pixels_are_those_of_whole_number_arithmetic():
    """So no machine's way of rounding has a say; and nothing is cut off at the frame."""
    images = blobs(6)
    maps = maps_of(images, 8)
    shown = apply_maps(torch.from_numpy(images), maps).numpy()
    for digit, transform in np.ndindex(6, 8):
        large = exactly(
            images[digit, 0], maps.inverse[digit, transform], maps.translation[digit, transform], 60
        )
        np.testing.assert_array_equal(shown[digit, transform], large[10:50, 10:50])
        assert large.sum() == shown[digit, transform].sum()


def parts_of(maps):
    """Degrees, shear and both scales, shape (digits, transforms, 4)."""
    a, b, c, d = np.moveaxis(np.linalg.inv(maps.inverse.numpy()), (2, 3), (0, 1)).reshape(
        4, *maps.inverse.shape[:2]
    )
    angle, x_scale = np.arctan2(c, a), np.hypot(a, c)
    y_scale = np.cos(angle) * d - np.sin(angle) * b
    shear = (np.cos(angle) * b + np.sin(angle) * d) / y_scale
    return np.stack([np.degrees(angle), shear, x_scale, y_scale], -1)


def test_parameters_are_uniform_over_their_ranges():
    drawn = parts_of(maps_of(blobs(300), 32)).reshape(-1, 4)
    ranges = [affmnist.ROTATION_DEG, affmnist.SHEAR, affmnist.SCALE, affmnist.SCALE]
    assert ranges == [(-20, 20), (-0.2, 0.2), (0.8, 1.2), (0.8, 1.2)]
    for values, (low, high) in zip(drawn.T, ranges, strict=True):
        assert low - 0.01 * (high - low) < values.min() < low + 0.01 * (high - low)
        assert high + 0.01 * (high - low) > values.max() > high - 0.01 * (high - low)
        assert 0.01 < kstest(values, "uniform", args=(low, high - low)).pvalue < 0.99
    assert abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.03


def test_translations_are_uniform_over_those_that_keep_the_ink():
    images = blobs(100)
    maps = maps_of(images, 16)
    forward = np.linalg.inv(maps.inverse.numpy())
    share = []
    for digit, transform in np.ndindex(100, 16):
        rows, columns = np.nonzero(images[digit, 0])
        # The corners of the square in which bilinear interpolation lets a pixel show.
        corners = np.array(
            [(columns - 13.5 + x, rows - 13.5 + y) for x in (-1, 1) for y in (-1, 1)]
        )
        reached = forward[digit, transform] @ corners
        low, high = -20.5 - reached.min((0, 2)), 20.5 - reached.max((0, 2))
        share.append((maps.translation[digit, transform].numpy() - low) / (high - low))
    share = np.array(share)
    assert share.min() >= 0
    assert share.max() <= 1
    for axis in share.T:
        assert 0.01 < kstest(axis, "uniform").pvalue < 0.99
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.05


def test_a_pixel_lands_where_its_map_sends_it():
    """Its place is A p + t, and its ink grows with the determinant."""
    images = np.zeros((1, 1, 28, 28), np.uint8)
    images[0, 0, 5:8, 20:23] = 255  # about x = 7.5, y = -7.5
    maps = maps_of(images, 40)
    shown = apply_maps(torch.from_numpy(images), maps).double()[0]
    forward = torch.linalg.inv(maps.inverse)[0]
    ink = shown.sum((1, 2))
    line = torch.arange(40.0, dtype=torch.float64) - 19.5
    place = torch.stack([(shown.sum(1) * line).sum(1), (shown.sum(2) * line).sum(1)], 1)
    expected = (forward @ torch.tensor([7.5, -7.5], dtype=torch.float64)) + maps.translation[0]
    torch.testing.assert_close(place / ink[:, None], expected, atol=0.1, rtol=0)
    torch.testing.assert_close(ink, 9 * 255 * torch.linalg.det(forward), atol=0, rtol=0.1)
    assert (ink.max() / ink.min()) > 1.5


def torchvision_parameters(forward):
    """Angle, scale and shears of torchvision, which has no second scale, for a map."""
    (a, b), (c, d) = forward.tolist()
    scale = math.sqrt(a * d - b * c)
    second = -math.acos(scale / math.hypot(a, c))
    angle = math.atan2(c, a) + second
    a, b, c, d = (entry / scale for entry in (a, b, c, d))
    leaning = math.cos(angle - second) / math.cos(second)
    first = math.atan(-(b + math.sin(angle)) / leaning)
    return math.degrees(angle), scale, [math.degrees(first), math.degrees(second)]


def test_torchvision_shows_the_same():
    """Where its parameters can express the map: where it stretches x at least as much as y."""
    images = blobs(10)
    maps = maps_of(images, 10)
    shown = apply_maps(torch.from_numpy(images), maps)
    forward = torch.linalg.inv(maps.inverse)
    scales = parts_of(maps)[..., 2:]
    compared = 0
    for digit, transform in np.ndindex(10, 10):
        if scales[digit, transform, 0] < scales[digit, transform, 1]:
            continue
        angle, scale, shear = torchvision_parameters(forward[digit, transform])
        theirs = affine(
            torch.from_numpy(affnist.centred(images[digit : digit + 1])).double(),
            angle,
            maps.translation[digit, transform].tolist(),
            scale,
            shear,
            InterpolationMode.BILINEAR,
            fill=[0.0],
        )
        ours = shown[digit, transform].double()
        torch.testing.assert_close(theirs[0, 0], ours, atol=0.51, rtol=0)
        compared += 1
    assert compared > 30


def test_a_map_depends_on_seed_digit_and_number_alone():
    images = blobs(90)  # more than fit in two batches
    few, many = transformed(images, 2, 0), transformed(images, 5, 0)
    assert few.shape == (2 * len(images), 1, 40, 40)
    by_digit = many.reshape(len(images), 5, 40, 40)
    np.testing.assert_array_equal(few.reshape(len(images), 2, 40, 40), by_digit[:, :2])
    np.testing.assert_array_equal(transformed(images[:7], 5, 0), many[:35])
    assert len(np.unique(many.reshape(len(many), -1), axis=0)) == len(many)
    same = np.repeat(images[:1], 20, axis=0)
    distinct = np.concatenate([transformed(same, 40, seed) for seed in (0, 1, -1, 1 << 40)])
    assert len(np.unique(distinct.reshape(len(distinct), -1), axis=0)) == len(distinct)


def test_numbers_are_frozen():
    images = blobs(50)
    digests = [hashlib.sha256(a.tobytes()).hexdigest() for a in (images, transformed(images, 4, 0))]
    assert digests == [
        "2982cccdd20706bf058a3914b3665f1ce542da44f7df18065170208ec3fa0fd1",
        "5f943cd8a51f2f9fea3e134f75ed5a7df43eee22db0895e36d8df805c4b8adb1",
    ]


@pytest.mark.parametrize("transforms", [-1, 0, 101])
def test_impossible_number_of_transforms_is_refused(transforms, tmp_path):
    with pytest.raises(UsageError) as caught:
        list(prepare(tmp_path, {"transforms_per_image": transforms, "seed": 0}))
    assert str(caught.value) == (
        f"transforms_per_image of data set affmnist-generated is {transforms}; "
        "set it between 1 and 100."
    )


@pytest.mark.fault
def test_missing_mnist_is_one_sentence(tmp_path):
    with pytest.raises(CapsreproError, match=r"ubyte\.gz: No such file.*datasets fetch mnist"):
        list(prepare(tmp_path, DATASET.parameters))


def test_title_says_what_it_is_not():
    assert "generated stand-in, not affNIST" in DATASET.title
    assert "no verdict" in affmnist.__doc__.split("\n")[0]


@pytest.mark.slow
@pytest.mark.real_data
@real_mnist
def test_generated_from_the_real_mnist():
    originals = dict(mnist.prepare(DATASETS_FOLDER, {}))["test"]
    splits = {}
    for name, split in prepare(DATASETS_FOLDER, DATASET.parameters):
        splits[name] = hashlib.sha256(split.images).hexdigest()
        assert split.images.shape == (DATASET.counts[name], *DATASET.image_shape)
        images, labels = split.images, split.labels
    assert splits == {
        "train": "7aa12354662bf32547e9f4e405444de65051bfd57365273a78af8e77621c0e17",
        "expanded": "48058817730dfbc1f27be545649843c3401b9b2cab427fc76db5a8d0dd0acced",
        "test": "02ea9459f1b07c4589dfae799e56f468eff41a2b3dade1dd16930ed43bf08651",
    }
    np.testing.assert_array_equal(labels, np.repeat(originals.labels, 32, axis=0))
    affnist.check_against_mnist(Path("generated"), images, labels, originals)
    ink = images.sum((1, 2, 3)).reshape(10_000, 32) / originals.images.sum((1, 2, 3))[:, None]
    # Scales multiply to 0.64..1.44, 1 on average; pixels add a little noise.
    assert (ink.min() > 0.6, ink.max() < 1.5) == (True, True)
    assert abs(ink.mean() - 1) < 0.002
