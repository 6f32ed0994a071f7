"""Factors of the convolutions by tiles: their numbers, how they lie in memory, and tiles of them.

Shape suffixes: R rows and S columns of a matrix; P parts of a number.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]


class Tile(NamedTuple):
    """What a program of a kernel takes on at a time.

    Attributes:
        M: Rows of a result.
        N: Columns of a result, at most.
        K: Numbers added over.
        warps: Of 32 threads.
        stages: Of the pipeline of loads.
    """

    M: int
    N: int
    K: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Of each kernel."""

    convolve: Tile
    images: Tile
    weight: Tile


class Factors(NamedTuple):
    """Factors of a precision.

    Attributes:
        tiles: Of the kernels.
        dtype: Of the numbers, as they are kept.
        parts: Of 11 bits, that they are multiplied in: 2 are exact, 1 is tf32; 0 leaves them whole.
    """

    tiles: Tiles
    dtype: torch.dtype
    parts: int


# Tiles that fill the memory beside the tensor cores.
FACTORS: dict[Precision, Factors] = {
    # Two sums of a tile, that of a step and that of all, share the registers.
    "float32": Factors(Tiles(*[Tile(128, 128, 32, 8, 3)] * 3), torch.float32, 2),
    "tf32": Factors(
        Tiles(Tile(128, 256, 32, 8, 4), Tile(128, 256, 32, 8, 4), Tile(256, 128, 32, 8, 4)),
        torch.float32,
        1,
    ),
    "bf16": Factors(
        Tiles(Tile(128, 256, 64, 8, 4), Tile(128, 256, 64, 8, 4), Tile(256, 128, 64, 8, 4)),
        torch.bfloat16,
        0,
    ),
}

# Of a tile that a program takes apart.
_ROWS, _COLUMNS = 64, 64

# Columns of a turned matrix come in multiples of this, for the hardware that copies blocks.
_WIDTH = 32


def factors_along(tensor: Tensor, parts: int, *, turned: bool) -> Tensor:
    """A tensor, seen as a matrix of a row for each of its first index, in parts.

    Args:
        tensor: On a GPU and contiguous; float32, unless it has no parts.
        parts: 0, 1 or 2.
        turned: Swap rows and columns; the new rows end with zeros.

    Returns:
        Shape (P·R, S), or (P·S, R) with R rounded up; the tensor itself if it has no parts.
    """
    source_RS = tensor.flatten(1)
    if parts == 0:
        return source_RS
    from capsrepro.models.gpu import convolution_kernels  # Triton exists on few machines.

    R, S = source_RS.shape
    rows, width = (S, -(-R // _WIDTH) * _WIDTH) if turned else (R, S)
    result = source_RS.new_empty(parts * rows, width)
    convolution_kernels.part_factors[(-(-S // _COLUMNS), -(-R // _ROWS))](
        source_RS,
        result,
        R,
        S,
        width,
        rows * width,
        TURNED=turned,
        PARTS=parts,
        BR=_ROWS,
        BS=_COLUMNS,
    )
    return result
