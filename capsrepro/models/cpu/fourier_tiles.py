"""Tiles of images, kernels and results to the numbers that are kept of them, and back.

Shape suffixes: N images, kernels or results, C channels, H, W rows and columns; M tiles of all of
them; F numbers kept of a tile, Z channels of all phases.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capsrepro.models.cpu.fourier_amplitudes import Role, Transform, kept
from capsrepro.models.cpu.fourier_code import kernel, scratch
from capsrepro.models.cpu.threads import in_parts


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


class _Rooms(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple[Role, torch.dtype], Tensor] = {}


_rooms = _Rooms()


def room(role: Role, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for the numbers of one side, the same at every call.

    As it is large, memory that is taken and freed in each step would be carved up by what is taken
    in between, and new memory be needed each time.
    """
    key, size = (role, dtype), math.prod(shape)
    if key not in _rooms.of or len(_rooms.of[key]) < size:
        # Else training could not write to what an evaluation has made.
        with torch.inference_mode(False):
            _rooms.of[key] = torch.empty(size, dtype=dtype)
    return _rooms.of[key][:size].view(*shape)


def to_numbers(images_NCHW: Tensor, role: Role, cut: Cut, dtype: torch.dtype) -> Tensor:
    """What is kept of images, kernels or results.

    Returns:
        Shape (F, M, Z), in the `room` of that side.
    """
    pixels_NHWC = _fitted(images_NCHW.permute(0, 2, 3, 1), cut.sides(role), dtype)
    phases = cut.transform(role).stride ** 2
    M = len(images_NCHW) * math.prod(cut.tiles_of(role))
    numbers_FMZ = room(role, (kept(cut.period), M, phases * images_NCHW.shape[1]), dtype)
    _run(pixels_NHWC, numbers_FMZ, role, cut, transposed=False)
    return numbers_FMZ


def to_pixels(numbers_FMZ: Tensor, role: Role, cut: Cut, result_NCHW: Tensor) -> None:
    """The transpose of `to_numbers`, written over images, kernels or results.

    Args:
        numbers_FMZ: What is kept of tiles.
        role: Which side.
        cut: Of the convolution.
        result_NCHW: Fastest with channels last in memory, no smaller or larger than the tiles.
    """
    result_NHWC = result_NCHW.permute(0, 2, 3, 1)
    N, H, W, C = result_NHWC.shape
    rows, columns = cut.sides(role)
    fits = (rows, columns) == (H, W) and result_NHWC.is_contiguous()
    pixels_NHWC = result_NHWC if fits else result_NHWC.new_empty(N, rows, columns, C)
    if cut.overlaps(role):
        pixels_NHWC.zero_()
    _run(pixels_NHWC, numbers_FMZ, role, cut, transposed=True)
    if not fits:
        if rows < H or columns < W:
            result_NHWC.zero_()
        result_NHWC[:, :rows, :columns] = pixels_NHWC[:, :H, :W]


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
