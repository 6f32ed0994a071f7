"""affMNIST: a generated stand-in for affNIST, which it is not; no verdict rests on it.

Made from MNIST alone, for machines that cannot reach affNIST's server. Every test digit goes
through 32 random affine maps: scale along each axis, then shear, rotation and translation. The
ranges below are recalled from affNIST's page and UNVERIFIED; a public loader that sorts its
rotations into bins from −20° on (and finds translations among its parameters) agrees with one of
them. Its exact shear, interpolation and distribution of translations are unknown.

torchvision's affine has one scale for both axes and takes one image at a time, so the maps are
applied in batches by what it calls itself, torch's grid_sample; the tests compare the two. Every
coefficient is a multiple of a power of two, chosen such that float64 rounds nothing until a pixel
becomes a byte. Machines can differ only in the last bit of what is cut to such a multiple; less
than once in 100,000 preparations would that change a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from capsrepro.data import affnist, mnist
from capsrepro.data.affnist_format import SIDE_PX
from capsrepro.data.dataset import Dataset, Images, Parameter, Split, Splits
from capsrepro.data.sources import SOURCES
from capsrepro.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

ROTATION_DEG = (-20.0, 20.0)
SHEAR = (-0.2, 0.2)
"""Of the horizontal axis: pixels to the right per pixel down."""
SCALE = (0.8, 1.2)
"""Along each axis of the upright digit."""

MOST_TRANSFORMS = 100

_LINEAR_STEPS = 4_096
_PLACES_PER_PX = 256
_CANVAS_PX = 32
"""Digits of 28 pixels in a power of two, so that grid_sample's coordinates round nothing."""
_BATCH_DIGITS = 40


class Maps(NamedTuple):
    """Affine maps in pixels from the centre, x to the right and y down.

    A digit's point p appears at A p + t, and the pixel q shows the digit's point B (q − t).

    Attributes:
        inverse: B, float64, shape (digits, transforms, 2, 2).
        translation: t, float64, shape (digits, transforms, 2).
    """

    inverse: Tensor
    translation: Tensor


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Make everything from MNIST's four files.

    Args:
        raw_root: Folder that holds `mnist/` with the files.
        parameters: `transforms_per_image`, 1..100; `seed` of the maps, any whole number.

    Yields:
        `train` and `expanded`, see `affnist.shifted_digits`, then `test`, all maps of the first
        test digit before those of the second: images (count, 1, 40, 40) 0..255 and labels
        (count, 1) 0..9.

    Raises:
        UsageError: `transforms_per_image` is out of its range.
        CapsreproError: A file is missing or is not what it should be.
    """
    transforms, seed = int(parameters["transforms_per_image"]), int(parameters["seed"])
    if not 1 <= transforms <= MOST_TRANSFORMS:
        raise UsageError(
            f"transforms_per_image of data set affmnist-generated is {transforms}; "
            f"set it between 1 and {MOST_TRANSFORMS}."
        )
    digits = dict(mnist.prepare(raw_root, {}))
    yield from affnist.shifted_digits(digits)
    originals = digits["test"]
    images = transformed(originals.images, transforms, seed)
    yield "test", Split(images, np.repeat(originals.labels, transforms, axis=0))


def transformed(images: Images, transforms: int, seed: int) -> Images:
    """Put every digit through its random maps.

    Args:
        images: Shape (count, 1, 28, 28), none of them black.
        transforms: Maps per digit.
        seed: Of the maps; map j of digit i is a function of (seed, i, j, digit i) alone.

    Returns:
        Shape (count · transforms, 1, 40, 40).
    """
    import torch

    result = np.empty((len(images), transforms, SIDE_PX, SIDE_PX), np.uint8)
    for first in range(0, len(images), _BATCH_DIGITS):
        batch = torch.from_numpy(images[first : first + _BATCH_DIGITS])
        maps = draw_maps(batch[:, 0] > 0, first, transforms, seed)
        result[first : first + _BATCH_DIGITS] = apply_maps(batch, maps).numpy()
    return result.reshape(-1, 1, SIDE_PX, SIDE_PX)


def draw_maps(ink: Tensor, first: int, transforms: int, seed: int) -> Maps:
    """Draw maps: rotation, shear and scales over their ranges, then a translation.

    Translations are uniform over those that leave all ink in the frame, in steps of 1/256 pixel.

    Args:
        ink: Where a digit is not black, bool, shape (digits, 28, 28).
        first: Index of the first digit.
        transforms: Maps per digit.
        seed: Of the maps.

    Returns:
        The maps.
    """
    import torch

    from capsrepro.data.counters import mix_counters, uniform

    digit = torch.arange(first, first + len(ink)).view(-1, 1, 1)
    # Room for the most transforms, so that a map does not depend on how many there are.
    number = torch.arange(transforms).view(-1, 1) * 8 + torch.arange(6)
    drawn = uniform(mix_counters(seed, 0, digit * (8 * MOST_TRANSFORMS) + number)).double()
    inverse = (_inverted(_linear(drawn)) * _LINEAR_STEPS).round() / _LINEAR_STEPS
    low, high = _reach(_inverted(inverse), ink)
    # What ends at pixel −1 or 40 has no share in it.
    edge = (SIDE_PX + 1) / 2
    first_place = ((-edge - low) * _PLACES_PER_PX).ceil()
    last_place = ((edge - high) * _PLACES_PER_PX).floor()
    place = first_place + (drawn[..., 4:] * (last_place - first_place + 1)).floor()
    return Maps(inverse, place / _PLACES_PER_PX)


def apply_maps(images: Tensor, maps: Maps) -> Tensor:
    """Show digits through their maps: bilinear, black outside, rounded half to even.

    Args:
        images: uint8, shape (digits, 1, 28, 28).
        maps: For each of them.

    Returns:
        uint8, shape (digits, transforms, 40, 40).
    """
    import torch
    from torch.nn import functional as F

    digits, transforms = maps.translation.shape[:2]
    line = torch.arange(SIDE_PX, dtype=torch.float64) - (SIDE_PX - 1) / 2
    pixels = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)
    seen = (pixels - maps.translation.unsqueeze(2)) @ maps.inverse.mT
    canvas = F.pad(images.double(), [(_CANVAS_PX - images.shape[3]) // 2] * 4)
    # All maps of a digit are one tall grid over it; the canvas spans −1 to 1 in both axes.
    grid = (seen / (_CANVAS_PX / 2)).view(digits, transforms * SIDE_PX, SIDE_PX, 2)
    shown = F.grid_sample(canvas, grid, mode="bilinear", align_corners=False)
    return shown.round().to(torch.uint8).view(digits, transforms, SIDE_PX, SIDE_PX)


def _linear(drawn: Tensor) -> Tensor:
    """Rotation · shear · scales, from four or more numbers of [0, 1): (..., 2, 2)."""
    import torch

    ranges = (ROTATION_DEG, SHEAR, SCALE, SCALE)
    angle, shear, x_scale, y_scale = (
        least + (most - least) * drawn[..., column] for column, (least, most) in enumerate(ranges)
    )
    cos, sin = (angle * (math.pi / 180)).cos(), (angle * (math.pi / 180)).sin()
    rows = (
        torch.stack([cos * x_scale, (cos * shear - sin) * y_scale], -1),
        torch.stack([sin * x_scale, (sin * shear + cos) * y_scale], -1),
    )
    return torch.stack(rows, -2)


def _inverted(matrix: Tensor) -> Tensor:
    """By the formula for 2×2, whose rounding no library decides; shape (..., 2, 2)."""
    import torch

    a, b, c, d = matrix.flatten(-2).unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], -1).view_as(matrix)
    return adjugate / (a * d - b * c)[..., None, None]


def _reach(forward: Tensor, ink: Tensor) -> tuple[Tensor, Tensor]:
    """How far a digit's ink reaches when mapped without translation.

    Args:
        forward: Shape (digits, transforms, 2, 2).
        ink: Shape (digits, 28, 28).

    Returns:
        Smallest and largest x and y that any inked pixel has a share in, (digits, transforms, 2).
    """
    import torch

    line = torch.arange(ink.shape[2], dtype=forward.dtype) - (ink.shape[2] - 1) / 2
    points = torch.stack(torch.meshgrid(line, line, indexing="xy")).view(2, -1)
    mapped = forward @ points
    black = ~ink.view(len(ink), 1, 1, -1)
    # Bilinear interpolation gives an inked pixel the open square of 2×2 pixels about it.
    share = forward.abs().sum(-1)
    low = mapped.masked_fill(black, math.inf).amin(-1) - share
    return low, mapped.masked_fill(black, -math.inf).amax(-1) + share


DATASET = Dataset(
    name="affmnist-generated",
    title="affMNIST, affine maps of MNIST digits, 40×40 (generated stand-in, not affNIST)",
    sources=SOURCES["mnist"],
    prepare=prepare,
    parameters={"transforms_per_image": affnist.TRANSFORMS, "seed": 0},
    image_shape=(1, SIDE_PX, SIDE_PX),
    classes=mnist.CLASSES,
    counts=affnist.COUNTS,
    licence=SOURCES["mnist"][0].licence,
    citation=SOURCES["mnist"][0].citation,
)
