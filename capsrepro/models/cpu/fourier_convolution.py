"""Convolutions on the processor as products of Fourier amplitudes: a quarter of the operations.

A tile of results is a cyclic correlation of the pixels that it sees with the kernel, exact but for
rounding, and that is one product at each frequency. Pixels a stride apart are one phase; phases of
a strided convolution are summed up like channels. Rounding is no worse than that of direct sums
(docs/performance.md).

Shape suffixes: B images, C input channels, H, W their rows and columns, O outputs, Y, X rows and
columns of results, K of kernels; N images or kernels, V, U tiles down and across, M tiles of all of
them; F numbers kept of a tile, Z channels of all phases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from capsrepro.models.cpu.fourier_cuts import WHOLE_VECTORS, Cut
from capsrepro.models.cpu.fourier_tiles import room, to_numbers, to_pixels

# Tiles of images, and channels of all phases, that are transformed at a time: enough for matrix
# products to be fast.
_TILES, _CHANNELS = 128, 512
# Tiles of results that are: the kernels are transformed once for all of them.
_RESULTS = 512


def correlate(images_BCHW: Tensor, kernels_OCKK: Tensor, cut: Cut, dtype: torch.dtype) -> Tensor:
    """The convolution.

    Args:
        images_BCHW: Images, padding included.
        kernels_OCKK: Kernels.
        cut: What `plan` says of their shapes.
        dtype: In which to compute.

    Returns:
        Shape (B, O, Y, X), channels last in memory.
    """
    O, _, K, _ = kernels_OCKK.shape
    sides = [(side - K) // cut.stride + 1 for side in images_BCHW.shape[2:]]
    result_BOYX = _channels_last((len(images_BCHW), O, *sides), dtype)
    for images, result in _together(images_BCHW, result_BOYX, cut):
        sums_FMO = room(result, "results", cut, dtype)
        for block, (some, kernels) in enumerate(_channels(images, kernels_OCKK, cut)):
            kernels_FZO = to_numbers(kernels, "kernels", cut, dtype).transpose(1, 2)
            for seen, sums in _parts(some, sums_FMO, cut):
                images_FMZ = to_numbers(seen, "images", cut, dtype)
                sums.baddbmm_(images_FMZ, kernels_FZO, beta=min(block, 1))
        to_pixels(sums_FMO, "results", cut, result)
    return result_BOYX


def images_gradient(
    shape: torch.Size,
    kernels_OCKK: Tensor,
    gradient_BOYX: Tensor,
    cut: Cut,
    dtype: torch.dtype,
    *,
    of: torch.dtype,
) -> Tensor:
    """Gradient of `correlate` with respect to images of this shape and type, channels last."""
    result_BCHW = _channels_last(shape, of)
    for result, gradient in _together(result_BCHW, gradient_BOYX, cut):
        slopes_FMO = to_numbers(gradient, "results", cut, dtype)
        for some, kernels in _channels(result, kernels_OCKK, cut):
            kernels_FOZ = to_numbers(kernels, "kernels", cut, dtype)
            for part, slopes in _parts(some, slopes_FMO, cut):
                sums_FMZ = room(part, "images", cut, dtype)
                torch.bmm(slopes, kernels_FOZ, out=sums_FMZ)
                to_pixels(sums_FMZ, "images", cut, part)
    return result_BCHW


def kernels_gradient(
    images_BCHW: Tensor, shape: torch.Size, gradient_BOYX: Tensor, cut: Cut, dtype: torch.dtype
) -> Tensor:
    """Gradient of `correlate` with respect to kernels of this shape, channels last in memory."""
    result_OCkk = _channels_last(shape, dtype)
    slopes_FMO: Tensor | None = None
    for images, result in _channels(images_BCHW, result_OCkk, cut):
        sums_FOZ = room(result, "kernels", cut, dtype)
        added = False
        for some, gradient in _together(images, gradient_BOYX, cut):
            # Where all of them are transformed at once, they still are when the next channels come.
            if slopes_FMO is None or len(some) < len(images):
                slopes_FMO = to_numbers(gradient, "results", cut, dtype)
            for seen, slopes in _parts(some, slopes_FMO, cut):
                images_FMZ = to_numbers(seen, "images", cut, dtype)
                sums_FOZ.baddbmm_(slopes.transpose(1, 2), images_FMZ, beta=int(added))
                added = True
        to_pixels(sums_FOZ, "kernels", cut, result)
    return result_OCkk


def _channels_last(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _together(images: Tensor, results: Tensor, cut: Cut) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and results of as many tiles as are summed up at a time."""
    size = max(1, _RESULTS // math.prod(cut.tiles))
    return zip(torch.split(images, size), torch.split(results, size), strict=True)


def _channels(images: Tensor, kernels: Tensor, cut: Cut) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of their channels at a time."""
    size = max(1, _CHANNELS // (WHOLE_VECTORS * cut.stride**2)) * WHOLE_VECTORS
    return zip(torch.split(images, size, 1), torch.split(kernels, size, 1), strict=True)


def _parts(images: Tensor, numbers_FMO: Tensor, cut: Cut) -> Iterator[tuple[Tensor, Tensor]]:
    """A few images at a time, with the numbers of their results."""
    tiles = math.prod(cut.tiles)
    # Alike: a part of few images would take nearly as long as one of many.
    size = -(-len(images) // max(1, round(len(images) * tiles / _TILES)))
    parts = torch.split(images, size), torch.split(numbers_FMO, size * tiles, 1)
    return zip(*parts, strict=True)
