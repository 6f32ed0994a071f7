"""Convolutions on the processor, with gradients that are faster than torch's own.

Figures: docs/performance.md, "One training step of the paper's MNIST CapsNet".

Shape suffixes: B images, C input channels, H rows, W columns, O output channels, Y rows and X
columns of the result, K rows or columns of a kernel, P numbers that one row of results is made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Patches that are written out at once, at most. Less costs a few per cent, more nothing but memory.
_PATCH_BYTES = 128 * 2**20

# Numbers of a result that are rectified at once in float32, so that they stay in the cache.
_RECTIFIED_AT_ONCE = 2**18


def pays(outputs: int, columns: int) -> bool:
    """Whether the kernels' gradient is faster as one matrix product than torch's own.

    Torch's sums along the columns of the result and is slow where those are few. The product
    copies every patch, which pays where many outputs make use of the copy.
    """
    return outputs >= 128 and columns <= 12


def weight_gradient(images_BCHW: Tensor, gradient_BOYX: Tensor, kernel: int, stride: int) -> Tensor:
    """Gradient of a convolution's kernels as a matrix product over all patches of the images.

    Every number is summed in one go, however many rows of a kernel are done at once.

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
    row_bytes = B * Y * X * kernel * C * images_BCHW.element_size()
    parts = min(kernel, -(-kernel * row_bytes // _PATCH_BYTES))
    rows = -(-kernel // parts)
    for first in range(0, kernel, rows):
        patches_NP = windows_BYXKKC[:, :, :, first : first + rows].reshape(B * Y * X, -1)
        part_OP = gradient_ON @ patches_NP
        result_OKP[:, first : first + rows] = part_OP.view(O, -1, kernel * C)
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
        reduced: Multiply in bfloat16; the bias is added in the bias's own type.
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
        if reduced:
            images_BCHW, weight_OCKK = images_BCHW.bfloat16(), weight_OCKK.bfloat16()
            result = F.conv2d(images_BCHW, weight_OCKK, None, stride)
            if rectified:
                _rectify_(result, bias_O)
            else:
                result = result.to(ctx.dtype)
                if bias_O is not None:
                    result += bias_O.view(-1, 1, 1)
        else:
            result = F.conv2d(images_BCHW, weight_OCKK, bias_O, stride)
            if rectified:
                result.relu_()
        ctx.save_for_backward(images_BCHW, weight_OCKK, result if rectified else None)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, result = ctx.saved_tensors
        if ctx.rectified:
            gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        of_images = of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3), dtype=ctx.dtype)
        gradient = gradient.to(images.dtype, memory_format=torch.channels_last)
        wanted = [*ctx.needs_input_grad[:2], False]
        if wanted[1] and pays(*gradient.shape[1:4:2]):
            of_weight = weight_gradient(images, gradient, weight.shape[2], ctx.stride)
            wanted[1] = False
        if any(wanted):
            strides, nothing, one = [ctx.stride] * 2, [0, 0], [1, 1]
            others = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, strides, nothing, one, False, nothing, 1, wanted
            )
            of_images, of_weight = others[0], of_weight if others[1] is None else others[1]
        of_images = None if of_images is None else of_images.to(ctx.images_dtype)
        of_weight = None if of_weight is None else of_weight.to(ctx.dtype)
        return of_images, of_weight, of_bias, None, None, None


def _rectify_(sums_BOYX: Tensor, bias_O: Tensor | None) -> None:
    """Add the bias in its own type and rectify, in place, a few images at a time."""
    images = max(1, _RECTIFIED_AT_ONCE // sums_BOYX[0].numel())
    for part in torch.split(sums_BOYX, images):
        if bias_O is None:
            part.relu_()
        else:
            part.copy_(part.to(bias_O.dtype).add_(bias_O.view(-1, 1, 1)).relu_())
