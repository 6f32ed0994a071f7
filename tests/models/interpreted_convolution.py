"""Run by `test_convolution_cuda` with TRITON_INTERPRET=1: the kernels on CPU tensors.

Prints, as JSON, for each case the largest differences of the convolution and its gradients from
`F.conv2d` in float64, relative to its largest number.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from capsrepro.models.convolution_cuda import TiledConvolution
from capsrepro.models.convolution_launches import Tile, Tiles

_TILE = Tile(M=16, N=32, K=32, warps=4, stages=1)

# Images, inputs, outputs, rows, columns, kernel, stride, programs. The last image of a tile may be
# missing; some pixels no place sees; programs do whole tiles, parts of several or none at all.
_CASES = (
    (16, 32, 32, 7, 6, 3, 2, 4),
    (21, 32, 64, 4, 5, 3, 1, 7),
    (21, 64, 32, 3, 4, 1, 1, 5),
    (16, 64, 64, 6, 7, 3, 3, 3),
    (16, 32, 32, 7, 5, 5, 2, 1),
    (16, 32, 32, 11, 9, 9, 2, 3),
    (16, 32, 32, 3, 3, 3, 1, 40),
)


def _differences(
    B: int, C: int, O: int, H: int, W: int, side: int, stride: int, programs: int
) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(B, C, H, W, generator=generator).requires_grad_()
    weight = torch.randn(O, C, side, side, generator=generator).requires_grad_()
    tiles = Tiles(*[_TILE] * 3)
    tiled: Tensor = TiledConvolution.apply(images, weight, stride, tiles, programs, torch.float32)
    plain = F.conv2d(images.double(), weight.double(), None, stride)
    slopes = torch.randn(plain.shape, generator=generator)
    got, want = (
        [y, *torch.autograd.grad(y, (images, weight), slopes.to(y))] for y in (tiled, plain)
    )
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, want, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({str(case): _differences(*case) for case in _CASES}))
