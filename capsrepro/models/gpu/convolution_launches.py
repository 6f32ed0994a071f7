"""Starts the kernels of convolutions without padding: grids, tiles and what they write.

Shape suffixes: see `convolution_kernels`; P pixels of an image, S parts of tiles, and tensors whose
suffix ends in C or O lie in memory in that order.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from capsrepro.models.gpu.convolution_factors import Factors, Tile, factors_along

# Tiles of fewer images are mostly empty. Positions in two parts of a tensor are of 32 bits.
_FEWEST_IMAGES, _MOST_NUMBERS = 64, 2**30

# Rows of a tile whose parts a program adds up.
_ROWS = 16


def supported(images_BCHW: Tensor, weight_OCkk: Tensor, stride: int) -> bool:
    """Whether the kernels take a convolution without padding and are the faster ones.

    They want at least 64 images; see `takes` for the rest.
    """
    B, _, H, W = images_BCHW.shape
    O, _, side, across = weight_OCkk.shape
    places = ((H - side) // stride + 1) * ((W - side) // stride + 1)
    return (
        B >= _FEWEST_IMAGES
        and takes(weight_OCkk, images_BCHW.device)
        and side == across
        and max(images_BCHW.numel(), weight_OCkk.numel(), B * O * places) < _MOST_NUMBERS
        and images_BCHW.dtype in (torch.float32, torch.bfloat16)
        and weight_OCkk.dtype == torch.float32
    )


def takes(weight_OCkk: Tensor, device: torch.device) -> bool:
    """Whether the kernels are made for the device and the weight.

    They are for the tensor cores of compute capability 9, and channels in multiples of 128. Triton
    must be installed.
    """
    return (
        device.type == "cuda"
        and weight_OCkk.shape[0] % 128 == weight_OCkk.shape[1] % 128 == 0
        and torch.cuda.get_device_capability(device)[0] == 9
        and importlib.util.find_spec("triton") is not None
    )


class Launcher:
    """Launches the kernels for images of one shape and kernels of one shape.

    Args:
        shape_BHWC: Of the images.
        shape_OkkC: Of the weight.
        stride: In pixels.
        factors: How they are made, and tiles of the kernels.
        processors: Of the GPU.
    """

    def __init__(
        self,
        shape_BHWC: tuple[int, ...],
        shape_OkkC: tuple[int, ...],
        stride: int,
        factors: Factors,
        processors: int,
    ) -> None:
        # Triton exists on few machines; kernels are loaded where they run.
        from capsrepro.models.gpu import convolution_kernels

        self.kernels: Any = convolution_kernels
        self.shape_BHWC, self.shape_OkkC, self.stride = shape_BHWC, shape_OkkC, stride
        self.factors, self.processors = factors, processors
        self.B, self.H, self.W, self.C = shape_BHWC
        self.O, self.side = shape_OkkC[:2]
        self.Y, self.X = ((size - self.side) // stride + 1 for size in (self.H, self.W))

    def convolve(self, images_BHWC: Tensor, weight_OkkC: Tensor) -> Tensor:
        """The convolution, float32, shape (B, Y, X, O)."""
        tile = self.factors.tiles.convolve
        N = _fitting(tile.N, self.O)
        result_BYXO = self._new(images_BHWC, (self.B, self.Y, self.X, self.O))
        tiles = -(-self.B // tile.M) * self.Y * self.X * (self.O // N)
        self._launch_shared(
            self.kernels.convolve_tiles,
            (
                self._along(images_BHWC, tile.M, tile.K),
                self._along(weight_OkkC, N, tile.K),
            ),
            result_BYXO,
            tile._replace(N=N),
            tiles,
            self.side**2 * (self.C // tile.K),
            {"MASKED": self.B % tile.M > 0},
        )
        return result_BYXO

    def weight_slopes(self, images_BHWC: Tensor, slopes_BYXO: Tensor) -> Tensor:
        """Gradient of the weight, float32, shape (O, k, k, C)."""
        tile = self.factors.tiles.weight
        M, N = _fitting(tile.M, self.O), _fitting(tile.N, self.C)
        result_OkkC = self._new(images_BHWC, self.shape_OkkC)
        blocks = -(-self.B // tile.K)
        self._launch_shared(
            self.kernels.weight_slopes,
            (self._across(images_BHWC, N, tile.K), self._across(slopes_BYXO, M, tile.K)),
            result_OkkC,
            tile._replace(M=M, N=N),
            (self.O // M) * self.side**2 * (self.C // N),
            blocks * self.Y * self.X,
            {"BLOCKS": blocks},
        )
        return result_OkkC

    def image_slopes(self, slopes_BYXO: Tensor, weight_OkkC: Tensor) -> Tensor:
        """Gradient of the images, of the type of the slopes, shape (B, H, W, C)."""
        tile = self.factors.tiles.images
        N = _fitting(tile.N, self.C)
        result_BHWC = slopes_BYXO.new_empty(self.shape_BHWC)
        order_P = _busiest_first(
            self.H, self.W, self.Y, self.X, self.side, self.stride, slopes_BYXO.device
        )
        grid = (self.H * self.W * -(-self.B // tile.M) * (self.C // N),)
        self.kernels.image_slopes[grid](
            self._along(slopes_BYXO, tile.M, tile.K),
            self._across(weight_OkkC, N, tile.K),
            order_P,
            result_BHWC,
            self.B,
            MASKED=self.B % tile.M > 0,
            **self._sizes(tile._replace(N=N)),
        )
        return result_BHWC

    def _launch_shared(
        self,
        kernel: Any,
        sources: tuple[Any, Any],
        result: Tensor,
        tile: Tile,
        tiles: int,
        steps: int,
        constants: dict[str, Any],
    ) -> None:
        """Whole tiles in rounds of all programs; of those left, shares of their steps.

        Where there are fewer tiles than processors each is cut into equal parts, though that
        leaves up to a quarter of them idle: programs of unequal shares read out of step.
        """
        programs = self.processors // tiles * tiles
        if 4 * programs < 3 * self.processors:
            programs = self.processors
        whole, left = divmod(tiles, programs)
        share = max(-(-left * steps // programs), 1)
        parts_SMN = self._new(result, (max(programs + left - 1, 1), tile.M, tile.N))
        kernel[(programs,)](
            *sources,
            result,
            parts_SMN,
            self.B,
            whole,
            share,
            left * steps,
            **constants,
            **self._sizes(tile),
        )
        if left:
            self.kernels.add_parts[(left, tile.M // _ROWS)](
                parts_SMN,
                result,
                len(result),
                whole * programs,
                share,
                WIDTH=result[0].numel(),
                STEPS=steps,
                M=tile.M,
                N=tile.N,
                ROWS=_ROWS,
                MASKED=len(result) % tile.M > 0,
            )

    def _along(self, matrix: Tensor, rows: int, columns: int) -> Any:
        """Tiles of rows of a matrix; numbers of a row are added over."""
        return _source(factors_along(matrix, self.factors.parts, turned=False), rows, columns)

    def _across(self, matrix: Tensor, columns: int, rows: int) -> Any:
        """Tiles of columns of a matrix, turned if in parts; numbers of a column are added over."""
        if self.factors.parts == 0:
            return _source(matrix, rows, columns)
        return _source(factors_along(matrix, self.factors.parts, turned=True), columns, rows)

    def _sizes(self, tile: Tile) -> dict[str, Any]:
        return {
            "W": self.W,
            "C": self.C,
            "Y": self.Y,
            "X": self.X,
            "O": self.O,
            "HWC": self.H * self.W * self.C,
            "SIDE": self.side,
            "STRIDE": self.stride,
            "M": tile.M,
            "N": tile.N,
            "K": tile.K,
            "PARTS": self.factors.parts,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }

    @staticmethod
    def _new(like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return like.new_empty(shape, dtype=torch.float32)


def _fitting(most: int, channels: int) -> int:
    """The largest power of two up to `most` that divides the channels."""
    return min(most, channels & -channels)


def _source(tensor: Tensor, rows: int, columns: int) -> Any:
    """What reads blocks of a tensor, seen as a matrix of a row for each of its first index.

    The hardware that copies blocks gives zeros for rows that are not there.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor.flatten(1), [rows, columns])


@cache
def _busiest_first(
    H: int, W: int, Y: int, X: int, side: int, stride: int, device: torch.device
) -> Tensor:
    """Pixels of an image, those that most places of the result see first; shape (H·W,), int32."""
    counts = []
    for size, places in ((H, Y), (W, X)):
        seen = torch.zeros(size, dtype=torch.int32)
        for place in range(places):
            seen[place * stride : place * stride + side] += 1
        counts.append(seen)
    busy_P = (counts[0][:, None] * counts[1]).flatten()
    return busy_P.argsort(descending=True, stable=True).int().to(device)
