"""Run by `test_em_routing_cuda` with TRITON_INTERPRET=1: the kernels on CPU tensors.

Prints, as JSON, for each case asked for (layer, reading, iterations, dtype), how far parents and
gradients are from those of written votes in float64, relative to the largest number of each.
"""

import json
import sys
from dataclasses import replace

import torch
from em_cases import READINGS, Case, furthest, inputs_of, layer_of, ours, outcome

from capsrepro.models.capsule_layers import Capsules
from capsrepro.models.gpu.em_launches import Tiles

# Tiles of images, parents and children, the last of each ragged.
_TILES = Tiles(images=2, parents=(2, 1), children=(8, 1), programs=16)
_CASES = {
    "overlaps": Case(3, 2, 1, images=1, children=1, parents=3),
    "unseen": Case(3, 2, 2, images=1, children=2, parents=2),
    "classes": Case(2, 2, 1, images=3, is_class_layer=True, children=1, parents=3),
}


def _differences(name: str, reading: str, iterations: int, dtype: torch.dtype) -> dict[str, float]:
    case, how = _CASES[name], replace(READINGS[reading], iterations=iterations)
    inputs = inputs_of(case, 0.2)
    # Children that give nothing, and where there are more images, parents that get nothing.
    inputs.activations[0, : 2 if case.images == 1 else None] = 0
    inputs = inputs.cast(torch.float64)
    want = outcome(ours(case, how, inputs, way="written"), inputs)
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
        name, reading, iterations, dtype = case.split()
        found[case] = _differences(name, reading, int(iterations), getattr(torch, dtype))
    print(json.dumps(found))
