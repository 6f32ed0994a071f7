"""Tiles of images, kernels and results to the numbers that are kept of them, and back.

Shape suffixes: N images, kernels or results, C channels, H, W rows and columns; M tiles of all of
them; F numbers kept of a tile, Z channels of all phases.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from capsrepro.models.cpu.fourier_amplitudes import Role, kept
from capsrepro.models.cpu.fourier_code import kernel, scratch
from capsrepro.models.cpu.fourier_cuts import Cut
from capsrepro.models.cpu.threads import addresses, in_parts

# Images that are copied into the form of the loops at once: each copy takes memory, and each start
# of the loops time.
_FITTED = 64


class _Rooms(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple[Role, torch.dtype], Tensor] = {}


_rooms = _Rooms()


def room(images_NCHW: Tensor, role: Role, cut: Cut, dtype: torch.dtype) -> Tensor:
    """Memory for what is kept of images, kernels or results, the same at every call.

    As it is large, memory that is taken and freed in each step would be carved up by what is taken
    in between, and new memory be needed each time.

    Returns:
        Shape (F, M, Z).
    """
    phases, tiles = cut.transform(role).stride ** 2, math.prod(cut.tiles_of(role))
    shape = kept(cut.period), len(images_NCHW) * tiles, phases * images_NCHW.shape[1]
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
    numbers_FMZ = room(images_NCHW, role, cut, dtype)
    for first, part_NHWC in _parts(images_NCHW):
        # Without a name of its own, a copy is freed before the next one is made.
        _run(_fitted(part_NHWC, cut.sides(role), dtype), numbers_FMZ, role, cut, first)
    return numbers_FMZ


def to_pixels(numbers_FMZ: Tensor, role: Role, cut: Cut, result_NCHW: Tensor) -> None:
    """The transpose of `to_numbers`, written over images, kernels or results.

    Args:
        numbers_FMZ: What is kept of tiles.
        role: Which side.
        cut: Of the convolution.
        result_NCHW: Fastest with channels last in memory, no smaller or larger than the tiles, and
            of the type of the numbers.
    """
    rows, columns = cut.sides(role)
    for first, result_NHWC in _parts(result_NCHW):
        N, H, W, C = result_NHWC.shape
        fits = (rows, columns) == (H, W) and _apart(result_NHWC, numbers_FMZ.dtype) > 0
        pixels_NHWC = result_NHWC if fits else numbers_FMZ.new_empty(N, rows, columns, C)
        if cut.overlaps(role):
            pixels_NHWC.zero_()
        _run(pixels_NHWC, numbers_FMZ, role, cut, first, transposed=True)
        if not fits:
            if rows < H or columns < W:
                result_NHWC.zero_()
            result_NHWC[:, :rows, :columns] = pixels_NHWC[:, :H, :W]


def _run(
    pixels_NHWC: Tensor,
    numbers_FMZ: Tensor,
    role: Role,
    cut: Cut,
    first: int,
    *,
    transposed: bool = False,
) -> None:
    """The loops over these images, whose numbers begin with those of image `first`."""
    dtype, transform = numbers_FMZ.dtype, cut.transform(role)
    loops = kernel(dtype, transform, transposed, transposed and cut.overlaps(role))
    N, _, _, C = pixels_NHWC.shape
    H, W = cut.sides(role)
    tiles, Z = cut.tiles_of(role), transform.stride**2 * C
    M, apart = numbers_FMZ.shape[1], _apart(pixels_NHWC, dtype)
    images = M // math.prod(tiles)
    # The loops see no ends.
    assert first + N <= images, "there is no room for the numbers of so many images"
    assert pixels_NHWC.shape == (N, H, W, C), "the pixels are not those of the tiles"
    assert apart, "the pixels are of another type, or not at equal distances"
    sizes = {"F": kept(cut.period), "M": M, "Z": Z}
    addresses({"numbers_FMZ": numbers_FMZ}, sizes, dtype)  # Checked; the loops begin within them.
    numbers_MZ = numbers_FMZ[0, first * math.prod(tiles) :]
    places = pixels_NHWC.data_ptr(), numbers_MZ.data_ptr()
    near, sums = scratch(dtype, transform, C)

    def run(_: int, start: int, stop: int) -> None:
        own = [torch.empty(size, dtype=dtype) for size in (near, sums)]
        own_places = [array.data_ptr() for array in own]
        loops(*places, *own_places, start, stop, images, H, W, C, apart, *tiles, cut.tile)

    in_parts(run, N)


def _parts(images_NCHW: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A few images at a time, and which of them is the first."""
    parts = torch.split(images_NCHW.permute(0, 2, 3, 1), _FITTED)
    return zip(count(0, _FITTED), parts)


def _apart(pixels_NHWC: Tensor, dtype: torch.dtype) -> int:
    """Numbers from each pixel to the next; 0 where the loops cannot take them as they are."""
    _, H, W, C = pixels_NHWC.shape
    together = pixels_NHWC.is_contiguous()
    # Where some of the channels are taken, the others lie between.
    apart = C if together else pixels_NHWC.stride(2)
    regular = together or pixels_NHWC.stride() == (H * W * apart, W * apart, apart, 1)
    return apart if regular and pixels_NHWC.dtype == dtype else 0


def _fitted(images_NHWC: Tensor, sides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As the loops take them: with zeros at the right and the bottom, or without what is there."""
    N, H, W, C = images_NHWC.shape
    rows, columns = sides
    seen_NHWC = images_NHWC[:, :rows, :columns]
    if rows <= H and columns <= W:
        return seen_NHWC if _apart(seen_NHWC, dtype) else seen_NHWC.to(dtype).contiguous()
    fitted_NHWC = images_NHWC.new_zeros(N, rows, columns, C, dtype=dtype)
    fitted_NHWC[:, :H, :W] = seen_NHWC
    return fitted_NHWC
