"""Run by `test_em_routing_cuda` with TRITON_INTERPRET=1: the kernels on CPU tensors.

Prints, as JSON, for each case and reading how far parents and gradients are from those of written
votes in float64, relative to the largest number of each.
"""

import json
import sys
from dataclasses import replace

import torch
from em_cases import CASES, READINGS, furthest, inputs_of, layer_of, ours, outcome

from capsrepro.models.capsule_layers import Capsules
from capsrepro.models.em_launches import Tiles

# Two tiles of parents, of children and of images, the last of each ragged.
_TILES = Tiles(images=2, parents=(2, 1), children=(4, 1))


def _fused(name: str, reading: str, iterations: int, dtype: torch.dtype) -> dict[str, float]:
    case = replace(CASES[name], parents=3, images=3 if name == "overlaps" else 1)
    how = replace(READINGS[reading], iterations=iterations)
    inputs = inputs_of(case, 0.2).cast(torch.float64)
    # A parent that gets nothing, and children that give nothing.
    with torch.no_grad():
        inputs.activations[0, 0] = 0
    want = outcome(ours(case, how, inputs, factored=False), inputs)
    inputs = inputs.cast(dtype)
    layer = layer_of(case, how, dtype)
    layer.forward = lambda children: layer.route_fused(children, _TILES)
    children = Capsules(inputs.poses, inputs.activations)
    parents = torch.func.functional_call(layer, inputs.parameters, (children,))
    return furthest(outcome(parents, inputs), want)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for case in sys.argv[1:]:
        name, reading, iterations, dtype = case.split("/")
        found[case] = _fused(name, reading, int(iterations), getattr(torch, dtype))
    print(json.dumps(found))
