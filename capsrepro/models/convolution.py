"""Convolution with a named precision and TensorFlow's SAME padding.

Only convolutions run in reduced precision; routing and losses stay in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capsrepro.models.cpu.convolution import convolve
from capsrepro.models.gpu.convolution_cuda import linear_convolution, rectified_convolution
from capsrepro.models.gpu.convolution_factors import Precision
from capsrepro.models.gpu.convolution_launches import takes

Padding = Literal["valid", "same"]


@cache
def has_bfloat16(device_type: str) -> bool:
    """Whether convolutions of bfloat16 numbers have a fast path on `cpu` or `cuda` here."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def output_size(size: int, kernel: int, stride: int, padding: Padding) -> int:
    """Pixels along one side after the convolution.

    Raises:
        ValueError: The kernel does not fit into an unpadded image.
    """
    if padding == "same":
        return -(-size // stride)
    if kernel > size:
        raise ValueError(f"a {kernel}x{kernel} kernel does not fit into {size}x{size} pixels")
    return (size - kernel) // stride + 1


class Conv2d(nn.Conv2d):
    """A square convolution whose arithmetic may be reduced while its parameters are float32.

    Attributes:
        precision: To which input and kernel are rounded for the product; tf32 is one of GPUs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: Padding = "valid",
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, bias=bias)
        self.pad_same = padding == "same"
        self.precision: Precision = "float32"

    def forward(self, images: Tensor) -> Tensor:
        """Convolve images of shape (B, C, H, W); the result is float32."""
        result = self._convolve(images, False)
        return result.float() if result.dtype == torch.bfloat16 else result

    def rectified(self, images: Tensor) -> Tensor:
        """ReLU of the convolution, to be convolved next: bfloat16 where that is what would be read.

        Rounding commutes with ReLU, so that nothing else is lost.
        """
        return self._convolve(images, True)

    def _convolve(self, images: Tensor, rectified: bool) -> Tensor:
        device, stride = images.device.type, self.stride[0]
        reduced = self.precision == "bf16"
        # A GPU's library pads by itself, by the same amount on all sides.
        within = self._padding_within if device == "cuda" else 0
        if self.pad_same and not within:
            images = self._pad(images)
        if device == "cpu":
            fast = reduced and has_bfloat16(device)
            factors = images, self.weight
            if reduced and not fast:
                # The same rounded factors, multiplied in float32.
                factors = images.bfloat16().float(), self.weight.bfloat16().float()
            return convolve(*factors, self.bias, stride, reduced=fast, rectified=rectified)
        if device == "cuda" and not rectified and self.bias is None:
            return linear_convolution(images, self.weight, stride, within, self.precision)
        if not reduced:
            result = F.conv2d(images, self.weight, self.bias, stride, within)
            return result.relu() if rectified else result
        if device == "cuda" and rectified and self.bias is not None:
            return rectified_convolution(images, self.weight, self.bias, stride, within)
        factors = images.bfloat16(), self.weight.bfloat16()
        if not has_bfloat16(device):
            factors = factors[0].float(), factors[1].float()
        result = F.conv2d(*factors, None, stride, within)
        if self.bias is not None:
            result = result.float() + self.bias.view(-1, 1, 1)
        return result.relu() if rectified else result

    def by_tiles(self, device: torch.device) -> bool:
        """Whether kernels of our own, which want channels last in memory, compute large batches."""
        return self.bias is None and not self.pad_same and takes(self.weight, device)

    @property
    def _padding_within(self) -> int:
        """Pixels of SAME padding where all sides get as many; else 0, and it has to be written."""
        kernel = self.kernel_size[0]
        return kernel // 2 if self.pad_same and kernel % 2 == 1 and self.stride[0] == 1 else 0

    def _pad(self, images: Tensor) -> Tensor:
        """TensorFlow's SAME: an odd pixel of padding goes to the right and the bottom."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        amounts: list[int] = []
        for size in (images.shape[3], images.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            amounts += [total // 2, total - total // 2]
        return F.pad(images, amounts)


class RectifiedConv2d(Conv2d):
    """A convolution and its ReLU, for another convolution to read: see `Conv2d.rectified`."""

    def forward(self, images: Tensor) -> Tensor:
        """ReLU of the convolution of images of shape (B, C, H, W)."""
        return self.rectified(images)


def set_convolution_precision(model: nn.Module, precision: Precision) -> None:
    """Switch every convolution of a model to the arithmetic of a precision."""
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.precision = precision


def truncated_normal_(tensor: Tensor, std: float) -> None:
    """TensorFlow's truncated normal: a start beyond two standard deviations is drawn again."""
    with torch.no_grad():
        nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def start_(layer: nn.Conv2d | nn.Linear, std: float | None, bias: float | None) -> None:
    """Truncated normal weights and constant biases; where it is None, torch's rule stays."""
    if std is not None:
        truncated_normal_(layer.weight, std)
    if bias is not None and layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
