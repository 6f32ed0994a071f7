"""Primary capsules from the maps of their convolution, by one kernel each way on a GPU.

Written out, they are a dozen passes over a tensor that fits into the cache, each of which costs
its start more than its arithmetic. Maps in bfloat16 are widened within the kernel; all arithmetic
is float32, and the gradient of the maps is rounded to their kind of number once.

Shape suffixes: B images, H rows, W columns, P = H·W places; O = types · E channels, E dimensions of
a capsule; I = types · P capsules; C chunks of places.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capsrepro.models.routing import squash


class PlacesBlock(NamedTuple):
    """What a program takes on: places, with so many warps of 32 threads."""

    places: int = 128
    warps: int = 4


PLACES_BLOCK = PlacesBlock()


def squashed_maps(maps_BOHW: Tensor, bias_O: Tensor, types: int, dim: int, scale: float) -> Tensor:
    """Channels read as `types` capsules of `dim` numbers at each place, squashed.

    Args:
        maps_BOHW: bfloat16 or a wider kind; a capsule's numbers lie in neighbouring channels.
        bias_O: float32, added to the scaled maps.
        types: Capsules at a place.
        dim: Numbers E of a capsule.
        scale: Of the maps.

    Returns:
        u_BEI in the bias's kind of number; the I = types · rows · columns capsules run along the
        end. On a GPU they have one derivative, not a second.
    """
    if not _supported(maps_BOHW, bias_O, dim):
        return plainly_squashed_maps(maps_BOHW, bias_O, types, dim, scale)
    with torch.cuda.device(maps_BOHW.device):
        capsules: Tensor = SquashedMaps.apply(maps_BOHW, bias_O, types, scale, PLACES_BLOCK)
    return capsules


def plainly_squashed_maps(
    maps_BOHW: Tensor, bias_O: Tensor, types: int, dim: int, scale: float
) -> Tensor:
    """`squashed_maps` written out, for all devices."""
    maps_BOHW = maps_BOHW.to(bias_O.dtype)
    if scale != 1:
        maps_BOHW = maps_BOHW * scale
    maps_BOHW = maps_BOHW + bias_O.view(-1, 1, 1)
    B, _, H, W = maps_BOHW.shape
    grouped = maps_BOHW.reshape(B, types, dim, H * W).transpose(1, 2)
    return squash(grouped.reshape(B, dim, types * H * W), dim=1)


def _supported(maps_BOHW: Tensor, bias_O: Tensor, dim: int) -> bool:
    return (
        maps_BOHW.is_cuda
        and maps_BOHW.dtype in (torch.bfloat16, torch.float32)
        and bias_O.dtype == torch.float32
        and dim in (2, 4, 8, 16, 32)
        and importlib.util.find_spec("triton") is not None
    )


class SquashedMaps(torch.autograd.Function):
    """The kernels and their gradient; for tensors on a GPU, or for Triton's interpreter."""

    @staticmethod
    def forward(
        ctx: Any,
        maps_BOHW: Tensor,
        bias_O: Tensor,
        types: int,
        scale: float,
        block: PlacesBlock,
    ) -> Tensor:
        """Capsules u_BEI."""
        from capsrepro.models.gpu import primary_kernels  # Triton exists on few machines.

        if not maps_BOHW.is_contiguous(memory_format=torch.channels_last):
            maps_BOHW = maps_BOHW.contiguous()
        ctx.launch = _Launch(maps_BOHW, types, scale, block)
        capsules_BEI = bias_O.new_empty(ctx.launch.shape_BEI)
        ctx.launch(primary_kernels.squash_maps, maps_BOHW, bias_O, capsules_BEI)
        ctx.save_for_backward(maps_BOHW, bias_O)
        return capsules_BEI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes_BEI: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of maps, in their kind of number and order in memory, and of the bias."""
        from capsrepro.models.gpu import primary_kernels

        maps_BOHW, bias_O = ctx.saved_tensors
        maps_slopes_BOHW = torch.empty_like(maps_BOHW)
        partial_CO = bias_O.new_empty(ctx.launch.chunks, len(bias_O))
        ctx.launch(
            primary_kernels.unsquash_maps,
            maps_BOHW,
            bias_O,
            slopes_BEI.contiguous(),
            maps_slopes_BOHW,
            partial_CO,
        )
        return maps_slopes_BOHW, partial_CO.sum(0), None, None, None


class _Launch:
    """Starts a kernel on maps of one shape."""

    def __init__(self, maps_BOHW: Tensor, types: int, scale: float, block: PlacesBlock) -> None:
        B, O, H, W = maps_BOHW.shape
        self.types, self.scale, self.block = types, scale, block
        self.shape_BEI = B, O // types, types * H * W
        self.places, self.rows = H * W, B * H * W
        self.chunks = -(-self.rows // block.places)
        # Channels last where the maps are both, as maps of one place are.
        last = maps_BOHW.is_contiguous(memory_format=torch.channels_last)
        self.strides = (O, 1) if last else (1, H * W)

    def __call__(self, kernel: Any, *tensors: Tensor) -> None:
        kernel[(self.chunks, self.types)](
            *tensors,
            self.rows,
            *self.strides,
            self.scale,
            P=self.places,
            TYPES=self.types,
            E=self.shape_BEI[1],
            R=self.block.places,
            num_warps=self.block.warps,
        )
