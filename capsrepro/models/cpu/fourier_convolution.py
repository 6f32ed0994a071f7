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
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from capsrepro.models.cpu.fourier_amplitudes import Role, kept
from capsrepro.models.cpu.fourier_tiles import Cut, room, to_numbers, to_pixels

# Pixels along the largest tile: the amplitudes of a kernel are forty times as many as its numbers.
_LONGEST = 14
# Tiles and kernels that are transformed at a time: enough for matrix products to be fast.
_TILES, _KERNELS = 128, 128
# What a number of a transform costs, in operations of a matrix product: it is written and read.
_MOVED = 100


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
            products_FMO = _sum("results", [(images_FMZ, kernels_FZO)])
            to_pixels(products_FMO, "results", cut, part)
    return result_BOYX


def images_gradient(
    shape: torch.Size, kernels_OCKK: Tensor, gradient_BOYX: Tensor, cut: Cut, dtype: torch.dtype
) -> Tensor:
    """Gradient of `correlate` with respect to images of this shape, channels last in memory."""
    result_BHWC = gradient_BOYX.new_empty(shape[0], *shape[2:], shape[1], dtype=dtype)
    result_BCHW = result_BHWC.permute(0, 3, 1, 2)
    pairs = zip(_images(gradient_BOYX, cut), _images(result_BCHW, cut), strict=True)
    for gradient, result in pairs:
        factors = (
            (to_numbers(slopes, "results", cut, dtype), to_numbers(kernels, "kernels", cut, dtype))
            for slopes, kernels in zip(_some(gradient, 1), _some(kernels_OCKK, 0), strict=True)
        )
        to_pixels(_sum("images", factors), "images", cut, result)
    return result_BCHW


def kernels_gradient(
    images_BCHW: Tensor, shape: torch.Size, gradient_BOYX: Tensor, cut: Cut, dtype: torch.dtype
) -> Tensor:
    """Gradient of `correlate` with respect to kernels of this shape, channels last in memory."""
    result_OkkC = gradient_BOYX.new_empty(shape[0], *shape[2:], shape[1], dtype=dtype)
    result_OCkk = result_OkkC.permute(0, 3, 1, 2)
    all_images = _images(images_BCHW, cut)
    images_FMZ = to_numbers(all_images[0], "images", cut, dtype)
    for gradient, result in zip(_some(gradient_BOYX, 1), _some(result_OCkk, 0), strict=True):
        # Where all images are transformed at once, they still are when the next kernels come.
        factors = (
            (
                to_numbers(slopes, "results", cut, dtype).transpose(1, 2),
                images_FMZ if len(all_images) == 1 else to_numbers(images, "images", cut, dtype),
            )
            for images, slopes in zip(all_images, _images(gradient, cut), strict=True)
        )
        to_pixels(_sum("kernels", factors), "kernels", cut, result)
    return result_OCkk


def _sum(role: Role, factors: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Of matrix products at each frequency, in the room of the side that it belongs to."""
    total: Tensor | None = None
    for one, other in factors:
        if total is None:
            total = room(role, (len(one), one.shape[1], other.shape[2]), one.dtype)
            torch.bmm(one, other, out=total)
        else:
            total.baddbmm_(one, other)
    assert total is not None, "there is no image"
    return total


def _images(images: Tensor, cut: Cut) -> tuple[Tensor, ...]:
    return torch.split(images, max(1, _TILES // math.prod(cut.tiles)))


def _some(kernels: Tensor, axis: int) -> tuple[Tensor, ...]:
    return torch.split(kernels, _KERNELS, axis)
