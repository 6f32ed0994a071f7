"""Accuracy on rotated, moved, scaled, affinely mapped and noisy test images.

No paper prescribes these distortions. They act on the whole image in raw pixels, black 0 and white
1; it is cropped and standardised afterwards, as the network is used to. Random affine maps have
the ranges of `capsrepro.data.affmnist` without its translations. What is random belongs to an
image, by its place in the split: along a curve it sees one direction, one map and one pattern of
noise, more and more of them.

Shape suffixes: B images, C channels, H rows, W columns, P = C·H·W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capsrepro.data.affmnist import ROTATION_DEG, SCALE, SHEAR
from capsrepro.data.augmentation import central
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.counters import mix_counters, named_seed, uniform
from capsrepro.errors import UsageError
from capsrepro.models.predictions import correct

_DIRECTIONS_SEED = named_seed("directions of translations")
_MAPS_SEED = named_seed("random affine maps")
_NOISE_SEED = named_seed("noise on images")


class Distortion(NamedTuple):
    """What is done to an image, as it stands in a record; nothing by default.

    Attributes:
        rotation_deg: Counterclockwise as seen on the screen, about the centre.
        translation_px: Length of the shift, towards one of eight directions 45° apart.
        scale: Of both axes, about the centre; more than 1 enlarges.
        affine_share: How far the image's random map goes; 1 is the whole of affNIST's ranges.
        noise_sd: Of Gaussian noise on raw pixels, before they are cut to [0, 1].
    """

    rotation_deg: float = 0.0
    translation_px: float = 0.0
    scale: float = 1.0
    affine_share: float = 0.0
    noise_sd: float = 0.0


def measure_distortions(
    model: nn.Module,
    split: EvaluationSplit,
    rotations_deg: Sequence[float],
    translations_px: Sequence[float],
    scales: Sequence[float],
    affine_shares: Sequence[float],
    noise_sds: Sequence[float],
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Classify every image under each distortion; along a list all else stays as it is.

    Args:
        model: Returns class scores_BK for prepared images.
        split: Test images with the operations that prepare them.
        rotations_deg: See `Distortion`, as for the others.
        translations_px: In pixels of the whole image.
        scales: More than 0.
        affine_shares: Less than what lets a scale vanish, 5.
        noise_sds: At least 0.

    Returns:
        Metrics: `test_images`. Curves: the fields of `Distortion` and `distorted_accuracy_pct` (all
        labels of an image must be right), one entry per point in the order of the arguments. What
        several lists share, as the image left alone, is one point.

    Raises:
        UsageError: A scale, share or standard deviation is out of its range.
    """
    lists = (rotations_deg, translations_px, scales, affine_shares, noise_sds)
    right = {
        Distortion()._replace(**{name: float(value)}): 0
        for name, values in zip(Distortion._fields, lists, strict=True)
        for value in values
    }
    for distortion in right:
        _check(distortion)
    model.eval()
    first = 0
    with torch.inference_mode():
        for batch in split.raw():
            items_B = torch.arange(first, first + len(batch.images), device=batch.images.device)
            first += len(items_B)
            for distortion in right:
                images = distort(batch.images, items_B, distortion)
                images = central(images, split.operations, split.offset_px)
                right[distortion] += int(correct(model(images), batch.labels).sum())
    curves = {name: [getattr(point, name) for point in right] for name in Distortion._fields}
    curves["distorted_accuracy_pct"] = [100 * count / split.items for count in right.values()]
    return {"test_images": split.items}, curves


def distort(images_BCHW: Tensor, items_B: Tensor, distortion: Distortion) -> Tensor:
    """Map images (bilinear, black outside, no smoothing before), then add noise.

    Args:
        images_BCHW: float32 in [0, 1].
        items_B: Places of the images in their split, int64.
        distortion: One for all; where it does nothing, the images are returned bit for bit.

    Returns:
        float32 in [0, 1], same shape.
    """
    if distortion._replace(noise_sd=0.0) != Distortion():
        images_BCHW = _mapped(images_BCHW, items_B, distortion)
    if distortion.noise_sd:
        noise_BP = distortion.noise_sd * _normal(items_B, images_BCHW[0].numel())
        images_BCHW = (images_BCHW + noise_BP.view_as(images_BCHW)).clamp(0, 1)
    return images_BCHW


def affine_maps(items_B: Tensor, share: float) -> Tensor:
    """Each image's own map, rotation · shear · scales as affMNIST has it, about the centre.

    Angle, shear and both scales are drawn over affNIST's ranges; `share` multiplies how far each
    lies from doing nothing.

    Args:
        items_B: Places of the images in their split.
        share: 0 gives the identity.

    Returns:
        What becomes of a point (x to the right, y down), float64, shape (B, 2, 2).
    """
    drawn_B4 = uniform(mix_counters(_MAPS_SEED, items_B[:, None], _count(4, items_B))).double()
    ranges = ((ROTATION_DEG, 0.0), (SHEAR, 0.0), (SCALE, 1.0), (SCALE, 1.0))
    angle_deg_B, shear_B, x_scale_B, y_scale_B = (
        still + share * (low + (high - low) * drawn_B - still)
        for ((low, high), still), drawn_B in zip(ranges, drawn_B4.unbind(1), strict=True)
    )
    zero_B = torch.zeros_like(shear_B)
    sheared_and_scaled = _matrices(x_scale_B, shear_B * y_scale_B, zero_B, y_scale_B)
    return _rotations(angle_deg_B) @ sheared_and_scaled


def _mapped(images_BCHW: Tensor, items_B: Tensor, distortion: Distortion) -> Tensor:
    """A point p of an image appears at A p + t, so that q shows the point A⁻¹(q − t).

    In float64, so that whole pixels stay whole and no weight lifts a pixel above white.
    """
    H, W = images_BCHW.shape[2:]
    angle_deg = torch.tensor(distortion.rotation_deg, dtype=torch.float64, device=items_B.device)
    own_B22 = affine_maps(items_B, distortion.affine_share)
    inverse_B22 = torch.linalg.inv(distortion.scale * _rotations(angle_deg) @ own_B22)
    direction_B = (mix_counters(_DIRECTIONS_SEED, 0, items_B) % 8).double() * (math.pi / 4)
    t_B2 = distortion.translation_px * torch.stack([direction_B.cos(), direction_B.sin()], 1)
    # torch counts from −1 to 1 along each axis, whichever is longer.
    half_2 = torch.tensor([W / 2, H / 2], dtype=torch.float64, device=items_B.device)
    theta_B23 = torch.cat([inverse_B22 * half_2, -inverse_B22 @ t_B2.unsqueeze(2)], 2)
    grid = F.affine_grid(theta_B23 / half_2[:, None], list(images_BCHW.shape), align_corners=False)
    shown = F.grid_sample(images_BCHW.double(), grid, mode="bilinear", align_corners=False)
    return shown.to(images_BCHW.dtype)


def _rotations(angle_deg: Tensor) -> Tensor:
    """Counterclockwise on a screen whose y points down; shape (..., 2, 2)."""
    cos, sin = torch.deg2rad(angle_deg).cos(), torch.deg2rad(angle_deg).sin()
    return _matrices(cos, sin, -sin, cos)


def _matrices(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Rows (a, b) and (c, d), shape (..., 2, 2)."""
    return torch.stack([a, b, c, d], -1).view(*a.shape, 2, 2)


def _normal(items_B: Tensor, P: int) -> Tensor:
    """Standard normal numbers of each image, float32, shape (B, P).

    By the inverse of the distribution function, which takes one uniform number where Box-Muller
    takes two. It is taken at the middles of 2^24 equal intervals, which float32 does not have near
    1, so that no number is infinite: the largest is 5.4.
    """
    drawn_BP = uniform(mix_counters(_NOISE_SEED, items_B[:, None], _count(P, items_B)))
    normal_BP: Tensor = torch.special.ndtri(drawn_BP.double() + 2.0**-25)
    return normal_BP.float()


def _count(numbers: int, like: Tensor) -> Tensor:
    """0, 1, 2... on the device of another tensor."""
    return torch.arange(numbers, device=like.device)


def _check(distortion: Distortion) -> None:
    """Refuse what would turn an image inside out, before anything takes long."""
    _, _, scale, share, noise_sd = distortion
    most = 1 / (1 - SCALE[0])
    for name, value, allowed, numbers in (
        ("scales", scale, scale > 0, "above 0"),
        ("affine_shares", share, 0 <= share < most, f"from 0 to below {most:g}"),
        ("noise_sds", noise_sd, noise_sd >= 0, "of 0 or more"),
    ):
        if not allowed:
            raise UsageError(
                f"{value:g} cannot be one of the `{name}` of distortions; use numbers {numbers}."
            )
