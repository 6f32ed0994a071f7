"""Run by `test_primary_cuda` with TRITON_INTERPRET=1: the kernels on CPU tensors.

Prints, as JSON, for each case the largest differences of capsules and gradients from the plain
computation, relative to its largest number,.
"""

import itertools
import json

import torch
from torch import Tensor

from capsrepro.models.gpu.primary_cuda import PlacesBlock, SquashedMaps, plainly_squashed_maps

_TYPES, _DIM = 3, 4


def _differences(order: torch.memory_format, scale: float, kind: torch.dtype) -> list[float]:
    """Of 18 places, in chunks of 8."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if kind == torch.float64 else torch.float32
    maps = torch.randn(3, _TYPES * _DIM, 3, 2, generator=generator, dtype=wide).to(kind)
    maps = maps.contiguous(memory_format=order).requires_grad_()
    bias = torch.randn(_TYPES * _DIM, generator=generator, dtype=wide).requires_grad_()
    weights = torch.randn(3, _DIM, _TYPES * 6, generator=generator, dtype=wide)
    fused: Tensor = SquashedMaps.apply(maps, bias, _TYPES, scale, PlacesBlock(8, 1))
    plain = plainly_squashed_maps(maps, bias, _TYPES, _DIM, scale)
    got, want = (
        [u, *torch.autograd.grad((u * weights).sum(), (maps, bias))] for u in (fused, plain)
    )
    assert [x.dtype for x in got] == [wide, kind, wide]
    assert got[1].stride() == maps.stride()
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, want, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    orders = {"last": torch.channels_last, "first": torch.contiguous_format}
    kinds = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
    found = {
        f"{order} {scale} {kind}": _differences(orders[order], scale, kinds[kind])
        for order, scale, kind in itertools.product(orders, (0.25, 1.0), kinds)
    }
    print(json.dumps(found))
