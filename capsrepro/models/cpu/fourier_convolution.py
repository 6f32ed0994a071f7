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
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from capsrepro.models.cpu.fourier_amplitudes import Role
from capsrepro.models.cpu.fourier_cuts import Cut
from capsrepro.models.cpu.fourier_tiles import room, to_numbers, to_pixels

# Tiles, and channels of all phases, that are transformed at a time: enough for matrix products to
# be fast. Sixteen channels are whole vectors, whatever their type.
_TILES, _CHANNELS, _VECTORS = 128, 512, 16


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
    for images, result in zip(_images(images_BCHW, cut), _images(result_BOYX, cut), strict=True):
        factors = (
            (
                to_numbers(seen, "images", cut, dtype),
                to_numbers(kernels, "kernels", cut, dtype).transpose(1, 2),
            )
            for seen, kernels in zip(_some(images, cut), _some(kernels_OCKK, cut), strict=True)
        )
        to_pixels(_sum("results", factors), "results", cut, result)
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
    pairs = zip(_images(gradient_BOYX, cut), _images(result_BCHW, cut), strict=True)
    for gradient, result in pairs:
        slopes_FMO = to_numbers(gradient, "results", cut, dtype)
        for kernels, part in zip(_some(kernels_OCKK, cut), _some(result, cut), strict=True):
            kernels_FOZ = to_numbers(kernels, "kernels", cut, dtype)
            to_pixels(_sum("images", [(slopes_FMO, kernels_FOZ)]), "images", cut, part)
    return result_BCHW


def kernels_gradient(
    images_BCHW: Tensor, shape: torch.Size, gradient_BOYX: Tensor, cut: Cut, dtype: torch.dtype
) -> Tensor:
    """Gradient of `correlate` with respect to kernels of this shape, channels last in memory."""
    result_OCkk = _channels_last(shape, dtype)
    gradients = _images(gradient_BOYX, cut)
    slopes_FMO = to_numbers(gradients[0], "results", cut, dtype)
    for images, result in zip(_some(images_BCHW, cut), _some(result_OCkk, cut), strict=True):
        # Where all results are transformed at once, they still are when the next channels come.
        factors = (
            (
                slopes_FMO if len(gradients) == 1 else to_numbers(slopes, "results", cut, dtype),
                to_numbers(seen, "images", cut, dtype),
            )
            for seen, slopes in zip(_images(images, cut), gradients, strict=True)
        )
        sums_FOZ = _sum("kernels", ((slopes.transpose(1, 2), seen) for slopes, seen in factors))
        to_pixels(sums_FOZ, "kernels", cut, result)
    return result_OCkk


def _channels_last(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


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


def _some(channels: Tensor, cut: Cut) -> tuple[Tensor, ...]:
    vectors = max(1, _CHANNELS // (_VECTORS * cut.stride**2))
    return torch.split(channels, vectors * _VECTORS, 1)
