"""How a convolution is cut into tiles for its Fourier amplitudes, and whether that is worth it.

Needs no compiler. Shape suffixes: see `fourier_convolution`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from capsrepro.models.cpu.fourier_amplitudes import Role, Transform, kept

# Pixels along the largest tile: the amplitudes of a kernel are forty times as many as its numbers.
_LONGEST = 14
# What a number of a transform costs, in operations of a matrix product: it is written and read.
_MOVED = 100

WHOLE_VECTORS = 16
"""Channels that are whole vectors, whatever their type; loops take multiples of them."""


@dataclass(frozen=True)
class Cut:
    """How a convolution is cut into tiles.

    Attributes:
        period: Rows and columns of a phase of the images that a tile sees.
        tile: Rows and columns of its results.
        tiles: V and U.
        taps: Rows and columns of a phase of the kernels.
        stride: Of the convolution in pixels.
    """

    period: int
    tile: int
    tiles: tuple[int, int]
    taps: int
    stride: int

    def transform(self, role: Role) -> Transform:
        """Of the tiles of one side."""
        size = {"images": self.period, "kernels": self.taps, "results": self.tile}[role]
        return Transform(role, self.period, size, 1 if role == "results" else self.stride)

    def tiles_of(self, role: Role) -> tuple[int, int]:
        """V and U; a kernel is one tile."""
        return (1, 1) if role == "kernels" else self.tiles

    def overlaps(self, role: Role) -> bool:
        """Whether a pixel may be in several tiles."""
        return role == "images" and self.tiles != (1, 1)

    def sides(self, role: Role) -> tuple[int, int]:
        """H and W that the tiles of one side cover."""
        transform = self.transform(role)
        down, across = (
            transform.stride * ((tiles - 1) * self.tile + transform.size)
            for tiles in self.tiles_of(role)
        )
        return down, across


@cache
def plan(
    images_BCHW: tuple[int, ...], kernels_OCKK: tuple[int, ...], stride: int, rate: float = 1
) -> Cut | None:
    """The cheapest cut of images of this shape; None where direct sums cost less.

    Args:
        images_BCHW: Shape of the images, padding included.
        kernels_OCKK: Shape of the kernels.
        stride: Of the convolution in pixels.
        rate: Operations of direct sums in the time of one operation of the products here.
    """
    (B, C, H, W), (O, _, K, _) = images_BCHW, kernels_OCKK
    Y, X = ((side - K) // stride + 1 for side in (H, W))
    taps, Z = -(-K // stride), C * stride**2

    def cost(cut: Cut) -> float:
        M = B * cut.tiles[0] * cut.tiles[1]
        moved = M * (Z + O) + Z * O
        return kept(cut.period) * (2.0 * M * Z * O + _MOVED * moved)

    cuts = [
        Cut(tile + taps - 1, tile, (-(-Y // tile), -(-X // tile)), taps, stride)
        for tile in range(1, min(max(Y, X), _LONGEST - taps + 1) + 1)
    ]
    if not cuts or C % WHOLE_VECTORS or O % WHOLE_VECTORS:
        return None
    best = min(cuts, key=cost)
    return best if cost(best) < 0.9 / rate * 2 * B * Y * X * K**2 * C * O else None
