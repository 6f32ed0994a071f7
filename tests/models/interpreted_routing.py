"""Run by `test_routing_cuda` with TRITON_INTERPRET=1: the kernels on CPU tensors.

Prints, as JSON, for each case the largest differences of parents and gradients from
`factored_dynamic_routing`, relative to its largest number.
"""

import itertools
import json

import torch
from torch import Tensor

from capsrepro.models.gpu.routing_cuda import FusedRouting
from capsrepro.models.gpu.routing_launches import Block, Blocks
from capsrepro.models.routing import factored_dynamic_routing

# Two tiles of images and two of children, the last of each ragged.
_BLOCK = Block(images=4, numbers=8, warps=1)
_BLOCKS = Blocks(route=_BLOCK, children=_BLOCK, transforms=_BLOCK)
_B, _J, _E, _I, _D = 5, 3, 4, 3, 4


def _differences(iterations: int, gradient: str, extras: bool, dtype: torch.dtype) -> list[float]:
    """With `extras` there are a bias and none of the above."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((_B, _E, _I), (_J, _E, _I, _D), (_J, _D))
    ][: 3 if extras else 2]
    weights = torch.randn(_B, _J, _D, generator=generator, dtype=dtype)
    children, transforms = inputs[:2]
    bias = inputs[2] if extras else None
    full = gradient == "full"
    kept = iterations - 1 if full else min(1, iterations - 1)
    fused: Tensor = FusedRouting.apply(
        children, transforms, bias, iterations, kept, full, extras, _BLOCKS
    )
    plain = factored_dynamic_routing(
        children,
        transforms,
        iterations,
        bias_JD=bias,
        gradient=gradient,
        none_of_the_above=extras,
    )
    got, want = ([v, *torch.autograd.grad((v * weights).sum(), inputs)] for v in (fused, plain))
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, want, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for *case, extras in itertools.product((1, 2, 3), ("full", "detached"), (False, True)):
        found[f"{case[0]} {case[1]} {extras}"] = _differences(*case, extras, torch.float64)
    found["5 full True"] = _differences(5, "full", True, torch.float64)
    found["float32"] = _differences(3, "full", True, torch.float32)
    print(json.dumps(found))
