"""Pictures of solids: which face a ray meets first, and how bright that face is.

The rays of a picture are parallel: there is no perspective, and both cameras of a pair look at the
middle of the table, from a little to the left and to the right. The solid turns; lamps and cameras
stay. A face is as bright as Lambert's law has it under one lamp and light from all around; nothing
throws a shadow.

The bytes should be the same on every machine. Single additions, multiplications, divisions, square
roots and comparisons of float64, which IEEE 754 rounds in one way only, decide about faces and
brightness; there is no product of matrices and no sum over an array in floating point. Cosines and
sines, the only functions that libraries round differently, are cut to a grid of 2^-20 first, and no
whole degree lies near the middle between two of its points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.solids_shapes import Solid

SIDE_PX = 48
_SAMPLES_PER_PX = 2
_GRID = 1 << 20

Vector: TypeAlias = tuple[float, float, float]

STEREO_DEG = (-3, 3)
"""How far the left and the right camera stand beside the nominal azimuth."""


class Lighting(NamedTuple):
    """A lamp and the light from all around.

    Attributes:
        azimuth_deg: Where the lamp stands, from the middle of the cameras to the right.
        elevation_deg: How high it stands.
        lamp: What it adds to a face that looks into it, as a share of white.
        ambient: What every face has, as a share of white.
    """

    azimuth_deg: int
    elevation_deg: int
    lamp: float
    ambient: float


LIGHTINGS = (
    Lighting(-60, 40, 0.7, 0.2),
    Lighting(60, 40, 0.7, 0.2),
    Lighting(0, 75, 0.7, 0.2),
    Lighting(-30, 30, 0.35, 0.4),
    Lighting(30, 60, 0.35, 0.4),
    Lighting(120, 50, 0.5, 0.3),
)


def face_map(solid: Solid, azimuth_deg: int, elevation_deg: int) -> NDArray[np.uint8]:
    """Which face every ray meets first.

    Args:
        solid: Its parts.
        azimuth_deg: Where the camera stands, from the solid's front to the right.
        elevation_deg: How high it stands.

    Returns:
        Places in the list of all planes of all parts, counted from 1, and 0 where the ray passes
        the solid; shape (96, 96), two rays per pixel and axis.
    """
    line = (np.arange(SIDE_PX * _SAMPLES_PER_PX) + 0.5) / _SAMPLES_PER_PX - SIDE_PX / 2
    forward, right, up = camera_axes(azimuth_deg, elevation_deg)
    nearest = np.full((len(line), len(line)), math.inf)
    faces = np.zeros(nearest.shape, np.uint8)
    first = 1
    for part in solid:
        enter, leave = np.full_like(nearest, -math.inf), np.full_like(nearest, math.inf)
        entered = np.zeros_like(faces)
        for number, (*normal, offset) in enumerate(part, first):
            # A ray within the plane counts as one that meets it far away.
            slope = inner(normal, forward) or 1e-9
            across, along = inner(normal, right), inner(normal, up)
            depth = ((offset + along * line) / slope)[:, None] - across * line / slope
            if slope < 0:
                entered[depth > enter] = number
                np.maximum(enter, depth, out=enter)
            else:
                np.minimum(leave, depth, out=leave)
        met = (enter < leave) & (enter < nearest)
        faces[met], nearest[met] = entered[met], enter[met]
        first += len(part)
    return faces


def brightness(solid: Solid, azimuth_deg: int) -> NDArray[np.uint8]:
    """How bright every face is under every lighting.

    Args:
        solid: Its parts.
        azimuth_deg: Where the middle of the cameras is, from the solid's front to the right.

    Returns:
        Grey levels 0..255, shape (lightings, 1 + planes); the first column is the background,
        half as bright as a face that no lamp reaches.
    """
    normals = [plane[:3] for part in solid for plane in part]
    rows = []
    for light in LIGHTINGS:
        towards, *_ = camera_axes(azimuth_deg + light.azimuth_deg, light.elevation_deg)
        lamp = [max(0.0, -inner(normal, towards)) * light.lamp for normal in normals]
        rows.append([light.ambient / 2, *(light.ambient + share for share in lamp)])
    return np.floor(np.array(rows) * 255 + 0.5).astype(np.uint8)


def camera_axes(azimuth_deg: int, elevation_deg: int) -> tuple[Vector, Vector, Vector]:
    """Unit vectors of a camera that looks at the middle: forward, to the right, up."""
    (c, s), (ce, se) = cos_sin(azimuth_deg), cos_sin(elevation_deg)
    return (-ce * c, -ce * s, -se), (-s, c, 0.0), (-se * c, -se * s, ce)


def cos_sin(degrees: int) -> tuple[float, float]:
    """Cosine and sine, to the nearest multiple of 2^-20."""
    angle = math.radians(degrees)
    return round(math.cos(angle) * _GRID) / _GRID, round(math.sin(angle) * _GRID) / _GRID


def inner(a: Sequence[float], b: Sequence[float]) -> float:
    """The inner product, added from left to right."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
