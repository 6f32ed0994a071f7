"""The five shapes of the data set `solids`, built of convex parts.

A roof, a podium, a bridge, a channel and a cross fill boxes drawn from the same ranges: neither
size nor outline tells them apart, but what is missing from the box. One view often hides that. From
the end of its slab a bridge is a block, and nearly so from high up; from one end podium, channel
and a steep roof are the same wall with a strip above it.

No shape looks the same after any turn about the vertical axis, so that azimuth matters: the ridge
of a roof and the middle of a cross lie towards the back, a podium is lowest at the front, and
bridge and channel have their thicker pillar or wall at the back. Yet the back is seldom unlike the
front, as with most toys: of shapes whose back is a plain wall (ramp, stairs, chair) a network that
has seen their front knows nothing.

Lengths are in pixels of the picture, from the middle of the box: x towards the front, y to the
right of someone who looks at the front, z up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

Plane: TypeAlias = tuple[float, float, float, float]
"""Outward unit normal x, y, z and the offset d: inside is where normal · point ≤ d."""

Part: TypeAlias = tuple[Plane, ...]
"""A bounded convex body: what is inside of all its planes."""

Solid: TypeAlias = tuple[Part, ...]
"""The union of its parts."""

Interval: TypeAlias = tuple[float, float]

SIZES_PX: tuple[Interval, Interval, Interval] = ((24, 32), (17, 24), (14, 21))
"""Least and greatest length, width and height of the boxes."""

DRAWS = 7
"""How many numbers decide a solid's proportions: three for its box, four for its shape."""


def shape_solid(shape: str, draws: Sequence[float]) -> Solid:
    """Build one solid.

    Args:
        shape: A key of `SHAPES`.
        draws: `DRAWS` numbers of [0, 1).

    Returns:
        Its parts. Together they reach all six sides of a box that is centred on (0, 0, 0).
    """
    length, width, height = (
        between(limits, draw) for limits, draw in zip(SIZES_PX, draws[:3], strict=True)
    )
    return SHAPES[shape](length / 2, width / 2, height / 2, draws[3:])


def between(limits: Interval, draw: float) -> float:
    """The number that lies between the limits as `draw` lies between 0 and 1."""
    return limits[0] + (limits[1] - limits[0]) * draw


def box(x: Interval, y: Interval, z: Interval) -> Part:
    """The six planes of a box with its edges along the axes."""
    return (
        (1.0, 0.0, 0.0, x[1]),
        (-1.0, 0.0, 0.0, -x[0]),
        (0.0, 1.0, 0.0, y[1]),
        (0.0, -1.0, 0.0, -y[0]),
        (0.0, 0.0, 1.0, z[1]),
        (0.0, 0.0, -1.0, -z[0]),
    )


def _roof(x: float, y: float, z: float, draws: Sequence[float]) -> Solid:
    """Walls and two slopes, the back one steeper; x, y, z are half the box."""
    ridge = between((-0.5, -0.1), draws[0]) * x
    front, back = between((-0.6, -0.2), draws[1]) * z, between((-0.3, 0.1), draws[2]) * z
    slopes = (_slope((ridge, z), (x, front)), _slope((-x, back), (ridge, z)))
    return ((*box((-x, x), (-y, y), (-z, z)), *slopes),)


def _slope(start: Interval, end: Interval) -> Plane:
    """The plane through two points (x, z), open to the side."""
    run, fall = end[0] - start[0], start[1] - end[1]
    length = math.sqrt(run * run + fall * fall)
    return (fall / length, 0.0, run / length, (fall * start[0] + run * start[1]) / length)


def _podium(x: float, y: float, z: float, draws: Sequence[float]) -> Solid:
    """A high step between a lower one at the back and the lowest one at the front."""
    back, front = between((-0.6, -0.3), draws[0]) * x, between((0.1, 0.4), draws[1]) * x
    low, middle = between((-0.6, -0.3), draws[2]) * z, between((-0.2, 0.2), draws[3]) * z
    return (
        box((-x, back), (-y, y), (-z, middle)),
        box((back, front), (-y, y), (-z, z)),
        box((front, x), (-y, y), (-z, low)),
    )


def _bridge(x: float, y: float, z: float, draws: Sequence[float]) -> Solid:
    """A slab on two pillars, the thicker one at the back."""
    back, front = between((-0.5, -0.25), draws[0]) * x, between((0.6, 0.8), draws[1]) * x
    under = between((0.0, 0.5), draws[2]) * z
    pillars = (box(ends, (-y, y), (-z, under)) for ends in ((-x, back), (front, x)))
    return (box((-x, x), (-y, y), (under, z)), *pillars)


def _channel(x: float, y: float, z: float, draws: Sequence[float]) -> Solid:
    """A slab with two walls on it, the thicker one at the back."""
    back, front = between((-0.5, -0.25), draws[0]) * x, between((0.6, 0.8), draws[1]) * x
    over = between((-0.5, 0.0), draws[2]) * z
    walls = (box(ends, (-y, y), (over, z)) for ends in ((-x, back), (front, x)))
    return (box((-x, x), (-y, y), (-z, over)), *walls)


def _cross(x: float, y: float, z: float, draws: Sequence[float]) -> Solid:
    """Two bars that cross behind the middle and to its left."""
    back, front = between((-0.7, -0.5), draws[0]) * x, between((-0.2, 0.2), draws[1]) * x
    left, right = between((-0.7, -0.5), draws[2]) * y, between((-0.2, 0.2), draws[3]) * y
    return box((back, front), (-y, y), (-z, z)), box((-x, x), (left, right), (-z, z))


SHAPES: dict[str, Callable[[float, float, float, Sequence[float]], Solid]] = {
    "roof": _roof,
    "podium": _podium,
    "bridge": _bridge,
    "channel": _channel,
    "cross": _cross,
}
