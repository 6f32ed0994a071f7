"""Convolutions on a GPU: in bfloat16 with a ReLU, rounded and written once, or without, and exact.

Convolution, bias, ReLU and the rounding that the next convolution would do anyway are four passes
over the largest tensors of a network where each is an operation of its own. Here the sums stay in
float32 until they are rounded; gradients of kernel and bias are float32.

Shape suffixes: B images, C inputs, H rows, W columns; O outputs, Y rows, X columns; M = B·Y·X
places; K = C·k² numbers under a kernel, and a one for the bias, padded to a multiple of 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.gpu.convolution_factors import FACTORS, Factors, Precision
from capsrepro.models.gpu.convolution_launches import Launcher, supported

# Up to here a matrix product over patches, which are written out, beats the library's convolution.
_MOST_PATCH_NUMBERS = 128


def rectified_convolution(
    images_BCHW: Tensor, weight_OCkk: Tensor, bias_O: Tensor, stride: int, padding: int
) -> Tensor:
    """relu(convolution + bias) of factors rounded to bfloat16.

    Args:
        images_BCHW: float32 or bfloat16, on a GPU.
        weight_OCkk: float32, square kernels.
        bias_O: float32.
        stride: In pixels.
        padding: Black pixels around the images.

    Returns:
        bfloat16, shape (B, O, Y, X), channels last in memory.
    """
    rectified: Tensor
    if weight_OCkk[0].numel() <= _MOST_PATCH_NUMBERS and not images_BCHW.requires_grad:
        images_BCHW = F.pad(images_BCHW, [padding] * 4)
        rectified = _OverPatches.apply(images_BCHW, weight_OCkk, bias_O, stride)
    else:
        rectified = _ByLibrary.apply(images_BCHW, weight_OCkk, bias_O, stride, padding)
    return rectified


def linear_convolution(
    images_BCHW: Tensor, weight_OCkk: Tensor, stride: int, padding: int, precision: Precision
) -> Tensor:
    """Convolution without a bias, of factors of a precision; other arguments as above.

    Returns:
        float32, shape (B, O, Y, X); channels last in memory where the kernels ran.
    """
    if padding > 0 or not supported(images_BCHW, weight_OCkk, stride):
        if precision != "bf16":
            return F.conv2d(images_BCHW, weight_OCkk, None, stride, padding)
        factors = images_BCHW.bfloat16(), weight_OCkk.bfloat16()
        return F.conv2d(*factors, None, stride, padding).float()
    with torch.cuda.device(images_BCHW.device):
        processors = torch.cuda.get_device_properties(images_BCHW.device).multi_processor_count
        result: Tensor = TiledConvolution.apply(
            images_BCHW, weight_OCkk, stride, FACTORS[precision], processors
        )
    return result


class TiledConvolution(torch.autograd.Function):
    """The kernels of `convolution_launches`; for tensors on a GPU, or for Triton's interpreter.

    Sums are never rounded on their way to the result and to the gradient of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        stride: int,
        factors: Factors,
        processors: int,
    ) -> Tensor:
        """The convolution of images and weight, rounded to the type of the factors."""
        images_BHWC, weight_OkkC = (_channels_last(x.to(factors.dtype)) for x in (images, weight))
        launch = Launcher(images_BHWC.shape, weight_OkkC.shape, stride, factors, processors)
        ctx.save_for_backward(images_BHWC, weight_OkkC)
        ctx.launch, ctx.kind = launch, images.dtype
        return launch.convolve(images_BHWC, weight_OkkC).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of images and weight."""
        images_BHWC, weight_OkkC = ctx.saved_tensors
        slopes_BYXO = _channels_last(slopes.to(images_BHWC.dtype))
        d_images = d_weight = None
        if ctx.needs_input_grad[0]:
            d_images_BHWC = ctx.launch.image_slopes(slopes_BYXO, weight_OkkC)
            d_images = d_images_BHWC.permute(0, 3, 1, 2).to(ctx.kind)
        if ctx.needs_input_grad[1]:
            d_weight = ctx.launch.weight_slopes(images_BHWC, slopes_BYXO).permute(0, 3, 1, 2)
        return d_images, d_weight, None, None, None


class _ByLibrary(torch.autograd.Function):
    """cuDNN's convolution with bias and ReLU at its end."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
    ) -> Tensor:
        factors = images.bfloat16(), weight.bfloat16()
        geometry = [stride, stride], [padding, padding], [1, 1]
        result: Tensor = torch.cudnn_convolution_relu(*factors, bias.bfloat16(), *geometry, 1)
        ctx.save_for_backward(*factors, result)
        ctx.geometry, ctx.kind = geometry, images.dtype
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, result = ctx.saved_tensors
        slopes = _through_relu(slopes, result)
        wanted = ctx.needs_input_grad
        d_images, d_weight, _ = torch.ops.aten.convolution_backward(
            slopes, images, weight, None, *ctx.geometry, False, [0, 0], 1, (*wanted[:2], False)
        )
        d_bias = slopes.sum((0, 2, 3), dtype=torch.float32) if wanted[2] else None
        return (
            d_images.to(ctx.kind) if wanted[0] else None,
            d_weight.float() if wanted[1] else None,
            d_bias,
            None,
            None,
        )


class _OverPatches(torch.autograd.Function):
    """One matrix product over patches; the bias is the weight of a one beside each patch."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        O, side = weight.shape[0], weight.shape[2]
        views_BCYXkk = images.unfold(2, side, stride).unfold(3, side, stride)
        B, _, Y, X = views_BCYXkk.shape[:4]
        numbers = weight[0].numel()
        missing = -(numbers + 1) % 8
        patches_MK = torch.zeros(
            B, Y, X, numbers + 1 + missing, dtype=torch.bfloat16, device=images.device
        )
        places = patches_MK[..., :numbers].view(B, Y, X, -1, side, side)
        places.copy_(views_BCYXkk.permute(0, 2, 3, 1, 4, 5))
        patches_MK[..., numbers] = 1
        patches_MK = patches_MK.flatten(0, 2)
        weights_OK = F.pad(torch.cat([weight.flatten(1), bias.unsqueeze(1)], 1), (0, missing))
        result_MO = (patches_MK @ weights_OK.bfloat16().T).relu_()
        ctx.save_for_backward(patches_MK, result_MO)
        ctx.shape = weight.shape
        return result_MO.view(B, Y, X, O).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        patches_MK, result_MO = ctx.saved_tensors
        slopes_MO = _through_relu(slopes.permute(0, 2, 3, 1).reshape(result_MO.shape), result_MO)
        d_weights_KO = torch.mm(patches_MK.T, slopes_MO, out_dtype=torch.float32)
        numbers = ctx.shape[1:].numel()
        d_weight = d_weights_KO[:numbers].T.reshape(ctx.shape)
        return None, d_weight, d_weights_KO[numbers], None


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


def _through_relu(slopes: Tensor, result: Tensor) -> Tensor:
    through: Tensor = torch.ops.aten.threshold_backward(slopes.to(result.dtype), result, 0)
    return through
