"""Tiles of images, kernels and results to the numbers that are kept of them, and back.

Shape suffixes: N images, kernels or results, C channels, H, W rows and columns; M tiles of all of
them; F numbers kept of a tile, Z channels of all phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capsrepro.models.fourier_code import (
    Role,
    Transform,
    kept,
    kernel,
    scratch,
)
from capsrepro.models.threads import in_parts


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


def to_numbers(images_NCHW: Tensor, role: Role, cut: Cut, dtype: torch.dtype) -> Tensor:
    """What is kept of images, kernels or results.

    Returns:
        Shape (F, M, Z).
    """
    pixels_NHWC = _fitted(images_NCHW.permute(0, 2, 3, 1), cut.sides(role), dtype)
    phases = cut.transform(role).stride ** 2
    M = len(images_NCHW) * math.prod(cut.tiles_of(role))
    numbers_FMZ = pixels_NHWC.new_empty(kept(cut.period), M, phases * images_NCHW.shape[1])
    _run(pixels_NHWC, numbers_FMZ, role, cut, transposed=False)
    return numbers_FMZ


def to_pixels(numbers_FMZ: Tensor, role: Role, cut: Cut, shape: Sequence[int]) -> Tensor:
    """The transpose of `to_numbers`.

    Args:
        numbers_FMZ: What is kept of tiles.
        role: Which side.
        cut: Of the convolution.
        shape: (N, C, H, W) of the images, kernels or results.

    Returns:
        Of that shape, channels last in memory.
    """
    empty = numbers_FMZ.new_zeros if cut.overlaps(role) else numbers_FMZ.new_empty
    pixels_NHWC = empty(shape[0], *cut.sides(role), shape[1])
    _run(pixels_NHWC, numbers_FMZ, role, cut, transposed=True)
    return _fitted(pixels_NHWC, shape[2:], numbers_FMZ.dtype).permute(0, 3, 1, 2)


def _run(
    pixels_NHWC: Tensor, numbers_FMZ: Tensor, role: Role, cut: Cut, *, transposed: bool
) -> None:
    dtype, transform = pixels_NHWC.dtype, cut.transform(role)
    loops = kernel(dtype, transform, transposed, transposed and cut.overlaps(role))
    N, *sizes = pixels_NHWC.shape
    near, sums = scratch(dtype, transform, sizes[-1])

    def run(_: int, first: int, last: int) -> None:
        own = torch.empty(near + sums, dtype=dtype)
        arrays = (
            pixels_NHWC.data_ptr(),
            numbers_FMZ.data_ptr(),
            own.data_ptr(),
            own[near:].data_ptr(),
        )
        loops(*arrays, first, last, N, *sizes, *cut.tiles_of(role), cut.tile)

    in_parts(run, N)


def _fitted(images_NHWC: Tensor, sides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous, with zeros at the right and the bottom, or without what stands there."""
    N, H, W, C = images_NHWC.shape
    rows, columns = sides
    seen_NHWC = images_NHWC[:, :rows, :columns]
    if rows <= H and columns <= W:
        return seen_NHWC.to(dtype).contiguous()
    fitted_NHWC = images_NHWC.new_zeros(N, rows, columns, C, dtype=dtype)
    fitted_NHWC[:, :H, :W] = seen_NHWC
    return fitted_NHWC
