"""ReLU of a convolution in bfloat16 on a GPU, rounded once and written once.

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
    few = weight_OCkk[0].numel() <= _MOST_PATCH_NUMBERS and not images_BCHW.requires_grad
    function = _OverPatches if few and padding == 0 else _ByLibrary
    rectified: Tensor = function.apply(images_BCHW, weight_OCkk, bias_O, stride, padding)
    return rectified


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
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
    ) -> Tensor:
        O, side = weight.shape[0], weight.shape[2]
        views_BCYXkk = images.unfold(2, side, stride).unfold(3, side, stride)
        B, _, Y, X = views_BCYXkk.shape[:4]
        numbers = weight[0].numel()
        patches_MK = torch.zeros(
            B, Y, X, -(-(numbers + 1) // 8) * 8, dtype=torch.bfloat16, device=images.device
        )
        places = patches_MK[..., :numbers].view(B, Y, X, -1, side, side)
        places.copy_(views_BCYXkk.permute(0, 2, 3, 1, 4, 5))
        patches_MK[..., numbers] = 1
        patches_MK = patches_MK.flatten(0, 2)
        weights_OK = F.pad(torch.cat([weight.flatten(1), bias.unsqueeze(1)], 1), _missing(numbers))
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
        return None, d_weight, d_weights_KO[numbers], None, None


def _missing(numbers: int) -> tuple[int, int]:
    """Zeros that bring the numbers of a patch and its one to a multiple of 8."""
    return 0, -(numbers + 1) % 8


def _through_relu(slopes: Tensor, result: Tensor) -> Tensor:
    through: Tensor = torch.ops.aten.threshold_backward(slopes.to(result.dtype), result, 0)
    return through
