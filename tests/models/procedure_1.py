"""Procedure 1 of Sabour et al. 2017 in plain loops, one pair (i, j) at a time: slow, beyond doubt.

Nothing here shares a line with the package, and there is no einsum, no softmax, no epsilon.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squash(s: Tensor) -> Tensor:
    """Eq. 1 for one vector."""
    norm = torch.sqrt((s * s).sum())
    return norm**2 / (1 + norm**2) * s / norm


def votes(children_BEI: Tensor, transforms_JEID: Tensor) -> list[list[list[Tensor]]]:
    """û_{j|i} of every image, as [b][i][j]; each is u_i times W_ij."""
    parents, dimensions, children, _ = transforms_JEID.shape
    return [
        [
            [
                sum(u[e, i] * transforms_JEID[j, e, i] for e in range(dimensions))
                for j in range(parents)
            ]
            for i in range(children)
        ]
        for u in children_BEI
    ]


def couplings(logits: list[Tensor], none_of_the_above: bool) -> list[Tensor]:
    """Eq. 3 for one child; the share of the category that is no parent stands nowhere."""
    nowhere = [torch.zeros_like(logits[0])] if none_of_the_above else []
    total = sum(torch.exp(b) for b in [*logits, *nowhere])
    return [torch.exp(b) / total for b in logits]


def route(
    predictions: list[list[Tensor]],
    iterations: int,
    bias_JD: Tensor | None = None,
    none_of_the_above: bool = False,
) -> list[Tensor]:
    """Procedure 1 for the votes [i][j] of one image; returns v_j."""
    children, parents = range(len(predictions)), range(len(predictions[0]))
    b = [[torch.zeros((), dtype=predictions[0][0].dtype) for _ in parents] for _ in children]
    for _ in range(iterations):
        c = [couplings(b[i], none_of_the_above) for i in children]
        v = []
        for j in parents:
            s = sum(c[i][j] * predictions[i][j] for i in children)
            v.append(squash(s if bias_JD is None else s + bias_JD[j]))
        for i in children:
            for j in parents:
                b[i][j] = b[i][j] + (predictions[i][j] * v[j]).sum()
    return v


def route_all(
    predictions: list[list[list[Tensor]]],
    iterations: int,
    bias_JD: Tensor | None = None,
    none_of_the_above: bool = False,
) -> Tensor:
    """`route` for every image: v_BJD."""
    return torch.stack(
        [torch.stack(route(one, iterations, bias_JD, none_of_the_above)) for one in predictions]
    )
