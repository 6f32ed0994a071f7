"""Run by `test_convolution_cuda` with TRITON_INTERPRET=1: the kernels on CPU tensors.

Prints, as JSON, for each case the relative differences of the convolution and its gradients from
`F.conv2d` in float64, by norm.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from capsrepro.models.gpu.convolution_cuda import TiledConvolution
from capsrepro.models.gpu.convolution_factors import Factors, Tile, Tiles

_TILE = Tile(M=16, N=32, K=32, warps=4, stages=1)

# Images, inputs, outputs, rows, columns, kernel, stride, programs, parts of factors. The last image
# of a tile may be missing; some pixels no place sees; programs do whole tiles, parts of several or
# none at all.
_CASES = (
    (16, 32, 32, 7, 6, 3, 2, 4, 0),
    (21, 32, 64, 4, 5, 3, 1, 7, 0),
    (21, 64, 32, 3, 4, 1, 1, 5, 0),
    (16, 64, 64, 6, 7, 3, 3, 3, 0),
    (16, 32, 32, 7, 5, 5, 2, 1, 0),
    (16, 32, 32, 11, 9, 9, 2, 3, 0),
    (16, 32, 32, 3, 3, 3, 1, 40, 0),
    (16, 32, 64, 7, 6, 3, 2, 4, 1),
    (37, 64, 32, 4, 5, 3, 1, 7, 1),
    (16, 32, 64, 7, 6, 3, 2, 4, 2),
    (37, 64, 32, 4, 5, 3, 1, 7, 2),
)


def _differences(
    B: int, C: int, O: int, H: int, W: int, side: int, stride: int, programs: int, parts: int
) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(B, C, H, W, generator=generator).requires_grad_()
    weight = torch.randn(O, C, side, side, generator=generator).requires_grad_()
    factors = Factors(Tiles(*[_TILE] * 3), torch.float32, parts)
    tiled: Tensor = TiledConvolution.apply(images, weight, stride, factors, programs)
    plain = F.conv2d(images.double(), weight.double(), None, stride)
    slopes = torch.randn(plain.shape, generator=generator)
    got, want = (
        [y, *torch.autograd.grad(y, (images, weight), slopes.to(y))] for y in (tiled, plain)
    )
    return [((a - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([[case[-1], _differences(*case)] for case in _CASES]))
