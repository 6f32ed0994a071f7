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
from functools import cache

import torch
from torch import Tensor

from capsrepro.models.fourier_code import kept
from capsrepro.models.fourier_tiles import Cut, to_numbers, to_pixels

# Pixels along the largest tile: the amplitudes of a kernel are forty times as many as its numbers.
_LONGEST = 14
# Tiles and kernels that are transformed at a time: enough for matrix products to be fast.
_TILES, _KERNELS = 256, 128
# What a number of a transform costs, in operations of a matrix product: it is written and read.
_MOVED = 75


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
    # Whole vectors of channels, whatever their type.
    if not cuts or C % 16 or O % 16:
        return None
    best = min(cuts, key=cost)
    return best if cost(best) < 0.9 / rate * 2 * B * Y * X * K**2 * C * O else None


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
    result_BYXO = images_BCHW.new_empty(len(images_BCHW), *sides, O, dtype=dtype)
    result_BOYX = result_BYXO.permute(0, 3, 1, 2)
    for images, results in zip(_images(images_BCHW, cut), _images(result_BOYX, cut), strict=True):
        images_FMZ = to_numbers(images, "images", cut, dtype)
        for kernels, part in zip(_some(kernels_OCKK, 0), _some(results, 1), strict=True):
            kernels_FZO = to_numbers(kernels, "kernels", cut, dtype).transpose(1, 2)
            part.copy_(to_pixels(torch.bmm(images_FMZ, kernels_FZO), "results", cut, part.shape))
    return result_BOYX


def images_gradient(
    shape: torch.Size, kernels_OCKK: Tensor, gradient_BOYX: Tensor, cut: Cut, dtype: torch.dtype
) -> Tensor:
    """Gradient of `correlate` with respect to images of this shape, channels last in memory."""
    parts = []
    for gradient in _images(gradient_BOYX, cut):
        sums_FMZ = None
        for slopes, kernels in zip(_some(gradient, 1), _some(kernels_OCKK, 0), strict=True):
            slopes_FMO = to_numbers(slopes, "results", cut, dtype)
            kernels_FOZ = to_numbers(kernels, "kernels", cut, dtype)
            sums_FMZ = _with_products(sums_FMZ, slopes_FMO, kernels_FOZ)
            del kernels_FOZ
        assert sums_FMZ is not None
        parts.append(to_pixels(sums_FMZ, "images", cut, (len(gradient), *shape[1:])))
    return torch.cat(parts)


def kernels_gradient(
    images_BCHW: Tensor, shape: torch.Size, gradient_BOYX: Tensor, cut: Cut, dtype: torch.dtype
) -> Tensor:
    """Gradient of `correlate` with respect to kernels of this shape, channels last in memory."""
    result_OkkC = gradient_BOYX.new_empty(shape[0], *shape[2:], shape[1], dtype=dtype)
    results = _some(result_OkkC.permute(0, 3, 1, 2), 0)
    sums: list[Tensor | None] = [None] * len(results)
    pairs = list(zip(_images(images_BCHW, cut), _images(gradient_BOYX, cut), strict=True))
    for number, (images, gradient) in enumerate(pairs, 1):
        images_FMZ = to_numbers(images, "images", cut, dtype)
        for part, (slopes, result) in enumerate(zip(_some(gradient, 1), results, strict=True)):
            slopes_FOM = to_numbers(slopes, "results", cut, dtype).transpose(1, 2)
            sums_FOZ = sums[part] = _with_products(sums[part], slopes_FOM, images_FMZ)
            if number == len(pairs):
                result.copy_(to_pixels(sums_FOZ, "kernels", cut, result.shape))
                del sums_FOZ
                sums[part] = None
    return result_OkkC.permute(0, 3, 1, 2)


def _with_products(sums: Tensor | None, one: Tensor, other: Tensor) -> Tensor:
    """Sums and the matrix product at each frequency."""
    return torch.bmm(one, other) if sums is None else sums.baddbmm_(one, other)


def _images(images: Tensor, cut: Cut) -> tuple[Tensor, ...]:
    return torch.split(images, max(1, _TILES // math.prod(cut.tiles)))


def _some(kernels: Tensor, axis: int) -> tuple[Tensor, ...]:
    return torch.split(kernels, _KERNELS, axis)
