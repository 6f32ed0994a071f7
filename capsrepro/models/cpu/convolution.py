"""Convolutions on the processor, with gradients: large ones as products of Fourier amplitudes.

The others are torch's own sums, but for gradients of kernels that a matrix product makes faster.
Figures: docs/performance.md, "On a CPU: the MNIST CapsNet".

Shape suffixes: B images, C input channels, H rows, W columns, O output channels, Y rows and X
columns of the result, K rows or columns of a kernel, P numbers that one row of results is made of.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.cpu.fourier_cuts import Cut, plan
from capsrepro.models.cpu.threads import has_compiler

# Operations of torch's convolutions in bfloat16 in the time of one in float32.
_BFLOAT16_RATE = 2.1
# Numbers of a result that are worked on at once, so that they stay in the cache.
_AT_ONCE = 2**19


Wanted = tuple[bool, bool, bool]
"""Which gradients are: of the images, of the kernels, of the bias."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Those three; None where one is not wanted."""


def pays(outputs: int, columns: int) -> bool:
    """Whether the kernels' gradient is faster as one matrix product than torch's own.

    Torch's sums along the columns of the result and is slow where those are few. The product
    copies every patch, which pays where many outputs make use of the copy.
    """
    return outputs >= 128 and columns <= 12


def weight_gradient(images_BCHW: Tensor, gradient_BOYX: Tensor, kernel: int, stride: int) -> Tensor:
    """Gradient of a convolution's kernels: a matrix product over patches for each of their rows.

    A number is summed in one go: in bfloat16 it is rounded once. One row at a time is as fast as
    all of them and takes that much less memory.

    Args:
        images_BCHW: What was convolved, padding included.
        gradient_BOYX: Gradient of the result, of the same type.
        kernel: Rows and columns of a kernel in pixels.
        stride: Of the convolution in pixels.

    Returns:
        Shape (O, C, kernel, kernel), of the given type, channels last in memory.
    """
    B, O, Y, X = gradient_BOYX.shape
    C = images_BCHW.shape[1]
    images_BHWC = images_BCHW.permute(0, 2, 3, 1)
    windows_BYXCKK = images_BHWC.unfold(1, kernel, stride).unfold(2, kernel, stride)
    windows_BYXKKC = windows_BYXCKK.permute(0, 1, 2, 4, 5, 3)
    gradient_ON = gradient_BOYX.permute(0, 2, 3, 1).reshape(B * Y * X, O).t()
    result_OKP = gradient_BOYX.new_empty(O, kernel, kernel * C)
    # One buffer for all rows: where freed memory is kept, each of its own would leave a hole.
    patches_BYXKC = images_BCHW.new_empty(B, Y, X, kernel, C)
    for row in range(kernel):
        patches_BYXKC.copy_(windows_BYXKKC[:, :, :, row])
        torch.mm(gradient_ON, patches_BYXKC.view(B * Y * X, kernel * C), out=result_OKP[:, row])
    return result_OKP.view(O, kernel, kernel, C).permute(0, 3, 1, 2)


def convolve(
    images_BCHW: Tensor,
    weight_OCKK: Tensor,
    bias_O: Tensor | None,
    stride: int,
    *,
    reduced: bool,
    rectified: bool = False,
) -> Tensor:
    """A convolution without padding, on the processor; differentiable once.

    Args:
        images_BCHW: Images, padding included.
        weight_OCKK: Kernels.
        bias_O: Added to the sums before they are rectified.
        stride: In pixels.
        reduced: Round factors to bfloat16; torch's own sums are then rounded as well, those over
            Fourier amplitudes are not. The bias is added in its own type.
        rectified: ReLU of the result.

    Returns:
        Shape (B, O, Y, X). Of the type of the kernels, but bfloat16 where reduced and rectified:
        such a result goes into the next convolution, which would round it so.
    """
    arguments = images_BCHW, weight_OCKK, bias_O, stride, reduced, rectified
    return _Convolution.apply(*arguments)  # type: ignore[no-any-return]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images_BCHW: Tensor,
        weight_OCKK: Tensor,
        bias_O: Tensor | None,
        stride: int,
        reduced: bool,
        rectified: bool,
    ) -> Tensor:
        ctx.stride, ctx.rectified = stride, rectified
        ctx.images_dtype, ctx.dtype = images_BCHW.dtype, weight_OCKK.dtype
        ctx.cut = _cut(images_BCHW, weight_OCKK, stride, reduced)
        if reduced:
            images_BCHW, weight_OCKK = images_BCHW.bfloat16(), weight_OCKK.bfloat16()
        if ctx.cut is not None:
            sums: Tensor = _fourier().correlate(images_BCHW, weight_OCKK, ctx.cut, ctx.dtype)
        else:
            sums = F.conv2d(images_BCHW, weight_OCKK, None if reduced else bias_O, stride)
            bias_O = bias_O if reduced else None
        if rectified and reduced:
            result = sums.bfloat16()
            _rectify_(result, bias_O)
        else:
            result = sums.to(ctx.dtype)
            if bias_O is not None:
                result += bias_O.view(-1, 1, 1)
            if rectified:
                result.relu_()
        ctx.save_for_backward(images_BCHW, weight_OCKK, result if rectified else None)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, result = ctx.saved_tensors
        wanted, dtype = ctx.needs_input_grad[:3], ctx.dtype
        if ctx.cut is not None:
            if result is not None:
                gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
            how = gradient.to(images.dtype, memory_format=torch.channels_last), ctx.cut, dtype
            of, fourier = ctx.images_dtype, _fourier()
            found: Gradients = (
                fourier.images_gradient(images.shape, weight, *how, of=of) if wanted[0] else None,
                fourier.kernels_gradient(images, weight.shape, *how) if wanted[1] else None,
                _sums(gradient) if wanted[2] else None,
            )
        elif result is not None:
            rest = gradient, ctx.stride, wanted, dtype
            found = _gradients_behind_relu(images, weight, result, *rest)
        else:
            found = _direct_gradients(images, weight, gradient, ctx.stride, wanted)
        dtypes = ctx.images_dtype, dtype, dtype
        given = (None if x is None else x.to(its) for x, its in zip(found, dtypes, strict=True))
        return *given, None, None, None


def _gradients_behind_relu(
    images: Tensor,
    weight: Tensor,
    result: Tensor,
    gradient: Tensor,
    stride: int,
    wanted: Wanted,
    dtype: torch.dtype,
) -> Gradients:
    """`_direct_gradients` of a few images at a time, summed up in this type.

    What the ReLU leaves of the gradient is used while it is in the cache, and never all in memory.
    """
    rows = len(_few_images(gradient)[0])
    of_images: list[Tensor] = []
    sums = [torch.zeros(shape, dtype=dtype) for shape in (weight.shape, weight.shape[:1])]
    parts = (torch.split(x, rows) for x in (images, result, gradient))
    for seen, left, slopes in zip(*parts, strict=True):
        kept = torch.ops.aten.threshold_backward(slopes, left, 0)
        of_seen, *others = _direct_gradients(seen, weight, kept, stride, wanted)
        if of_seen is not None:
            of_images.append(of_seen)
        for total, more in zip(sums, others, strict=True):
            if more is not None:
                total += more
    of_weight, of_bias = (x if asked else None for x, asked in zip(sums, wanted[1:], strict=True))
    return torch.cat(of_images) if of_images else None, of_weight, of_bias


def _direct_gradients(
    images: Tensor, weight: Tensor, gradient: Tensor, stride: int, wanted: Wanted
) -> Gradients:
    """Of the images, of the kernels and of the bias, where wanted, without Fourier amplitudes."""
    of_bias = _sums(gradient) if wanted[2] else None
    gradient = gradient.to(images.dtype, memory_format=torch.channels_last)
    mask = [*wanted[:2], False]
    of_images = of_weight = None
    if mask[1] and pays(*gradient.shape[1:4:2]):
        of_weight = weight_gradient(images, gradient, weight.shape[2], stride)
        mask[1] = False
    if any(mask):
        strides, nothing, one = [stride] * 2, [0, 0], [1, 1]
        others = torch.ops.aten.convolution_backward(
            gradient, images, weight, None, strides, nothing, one, False, nothing, 1, mask
        )
        of_images, of_weight = others[0], of_weight if others[1] is None else others[1]
    return of_images, of_weight, of_bias


def _cut(images: Tensor, weight: Tensor, stride: int, reduced: bool) -> Cut | None:
    """How Fourier amplitudes do it; None where direct sums are faster, or there is no compiler."""
    rate = _BFLOAT16_RATE if reduced else 1
    shapes = tuple(images.shape), tuple(weight.shape)
    return plan(*shapes, stride, rate) if has_compiler() else None


@cache
def _fourier() -> ModuleType:
    """Imported where it is needed: its compiler is."""
    return import_module("capsrepro.models.cpu.fourier_convolution")


def _few_images(images_BOYX: Tensor) -> tuple[Tensor, ...]:
    return torch.split(images_BOYX, max(1, _AT_ONCE // images_BOYX[0].numel()))


def _rectify_(sums_BOYX: Tensor, bias_O: Tensor | None) -> None:
    """Add the bias in its own type and rectify, in place."""
    if bias_O is None:
        sums_BOYX.relu_()
        return
    for part in _few_images(sums_BOYX):
        part.copy_(part.to(bias_O.dtype).add_(bias_O.view(-1, 1, 1)).relu_())


def _sums(gradient_BOYX: Tensor) -> Tensor:
    """Over images and places, in float32 or wider; shape (O,)."""
    if gradient_BOYX.dtype != torch.bfloat16:
        return gradient_BOYX.sum((0, 2, 3))
    return torch.stack([part.float().sum((0, 2, 3)) for part in _few_images(gradient_BOYX)]).sum(0)
