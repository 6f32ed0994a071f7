"""Procedure 1 of Hinton et al. 2018 in plain loops, one child and one parent at a time.

Nothing here shares a line with the package: densities are densities and not logarithms, nothing is
gathered into patches, no epsilon is added anywhere. What public programs got wrong is a function of
its own, so that a test can put the wrong one in its place and look whether anyone would notice.

A capsule is (row, column, type). Tensors are poses of R×C numbers or single numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Capsule = tuple[int, int, int]
Pair = tuple[Capsule, Capsule]


@dataclass(frozen=True)
class Reading:
    """What the text leaves open or the released program does in its own way.

    `formula` is one of text, code and mixing; `per_parent` measures ΣR in children per parent.
    """

    formula: str
    final_temperature: float
    floor: float = 0.0
    new_share: float = 1.0
    per_parent: bool = False


class Step(NamedTuple):
    """What an iteration ends with; `shares` are the R_ij that it started from."""

    poses: dict[Capsule, Tensor]
    activations: dict[Capsule, Tensor]
    shares: dict[Pair, Tensor]


class Layer(NamedTuple):
    """Which child sees which parent, and their votes V_ij."""

    seen_by: dict[Capsule, list[Capsule]]
    children_of: dict[Capsule, list[Capsule]]
    votes: dict[Pair, Tensor]


def layer(
    poses_YXIRC: Tensor, transforms_YXIKJC: Tensor, stride: int, offsets_YXRC: Tensor | None = None
) -> Layer:
    """V_ij = M_i W_ij of every child under the kernel of every parent, places added."""
    side, kernel = len(poses_YXIRC), len(transforms_YXIKJC)
    places = range(0, side - kernel + 1, stride)
    types, parents = poses_YXIRC.shape[2], transforms_YXIKJC.shape[4]
    found = Layer({}, {}, {})
    for row in places:
        for column in places:
            for j in range(parents):
                parent = (row // stride, column // stride, j)
                found.children_of[parent] = []
                for y in range(kernel):
                    for x in range(kernel):
                        for i in range(types):
                            child = (row + y, column + x, i)
                            vote = poses_YXIRC[child] @ transforms_YXIKJC[y, x, i, :, j]
                            if offsets_YXRC is not None:
                                vote = vote + offsets_YXRC[y, x]
                            found.children_of[parent].append(child)
                            found.seen_by.setdefault(child, []).append(parent)
                            found.votes[child, parent] = vote
    return found


def first_share(child: Capsule, layer: Layer) -> float:
    """R_ij = 1/|Ω|."""
    return 1 / len(layer.seen_by[child])


def competitors(child: Capsule, parent: Capsule, layer: Layer) -> list[Capsule]:
    """All parents, wherever they are, that this child sends votes to."""
    return layer.seen_by[child]


def temperature(final: float, iteration: int) -> float:
    """λ of iterations 0, 1, … as the authors gave it."""
    return final * (1 - 0.95 ** (iteration + 1))


def weight(share: Tensor | float, activation: Tensor) -> Tensor:
    """R_ij ← R_ij a_i."""
    return share * activation


def data(mass: Tensor, layer: Layer, reading: Reading) -> Tensor:
    """ΣR as it enters the cost."""
    if not reading.per_parent:
        return mass
    return mass / (len(layer.seen_by) / len(layer.children_of))


def cost(variance: Tensor, beta_u: Tensor, mass: Tensor) -> Tensor:
    """Of each dimension, as printed."""
    return (beta_u + torch.sqrt(variance).log()) * mass


def released_logit(variance: Tensor, beta_u: Tensor, beta_a: Tensor, mass: Tensor) -> Tensor:
    """What the released program has in place of β_a − Σ cost."""
    constant = variance.numel() * (math.log(2 * math.pi) + 1)
    return mass * (-variance.log().sum() - beta_u * constant) - 5000 * beta_a


def density(vote: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """p_j of a vote: densities of all dimensions, multiplied."""
    return (
        torch.exp(-((vote - mean) ** 2) / (2 * variance)) / torch.sqrt(2 * math.pi * variance)
    ).prod()


def fit(
    weights: list[Tensor], votes: list[Tensor], before: Tensor | float, reading: Reading
) -> tuple[Tensor, Tensor]:
    """μ_j and σ_j² of every dimension."""
    mean = sum(w * v for w, v in zip(weights, votes, strict=True)) / sum(weights)
    mean = reading.new_share * mean + (1 - reading.new_share) * before
    squares = sum(w * (v - mean) ** 2 for w, v in zip(weights, votes, strict=True))
    return mean, squares / sum(weights) + reading.floor


def route(
    layer: Layer,
    activations_YXI: Tensor,
    beta_a_J: Tensor,
    beta_u_J: Tensor,
    reading: Reading,
    iterations: int,
) -> list[Step]:
    """Procedure 1 for one image: what every iteration ends with."""
    steps: list[Step] = []
    shares = {(i, j): first_share(i, layer) for i, j in layer.votes}
    for iteration in range(iterations):
        means, variances, masses = {}, {}, {}
        for j, children in layer.children_of.items():
            weights = [weight(shares[i, j], activations_YXI[i]) for i in children]
            votes = [layer.votes[i, j] for i in children]
            before = steps[-1].poses[j] if steps else 0.0
            means[j], variances[j] = fit(weights, votes, before, reading)
            masses[j] = sum(weights)
        activations = {}
        for j in layer.children_of:
            betas = beta_a_J[j[2]], beta_u_J[j[2]]
            a = parent_activation(j, variances[j], masses, *betas, iteration, layer, reading)
            activations[j] = a
        steps.append(Step(means, activations, shares))
        shares = e_step(layer, means, variances, activations)
    return steps


def parent_activation(
    j: Capsule,
    variance: Tensor,
    masses: dict[Capsule, Tensor],
    beta_a: Tensor,
    beta_u: Tensor,
    iteration: int,
    layer: Layer,
    reading: Reading,
) -> Tensor:
    """a_j."""
    if reading.formula == "mixing":
        return masses[j] / sum(masses.values())
    amount = data(masses[j], layer, reading)
    if reading.formula == "text":
        logit = beta_a - cost(variance, beta_u, amount).sum()
    else:
        logit = released_logit(variance, beta_u, beta_a, amount)
    return 1 / (1 + torch.exp(-temperature(reading.final_temperature, iteration) * logit))


def e_step(
    layer: Layer,
    means: dict[Capsule, Tensor],
    variances: dict[Capsule, Tensor],
    activations: dict[Capsule, Tensor],
) -> dict[Pair, Tensor]:
    """R_ij = a_j p_ij / Σ_k a_k p_ik."""
    products = {
        (i, j): activations[j] * density(vote, means[j], variances[j])
        for (i, j), vote in layer.votes.items()
    }
    return {
        (i, j): product / sum(products[i, k] for k in competitors(i, j, layer))
        for (i, j), product in products.items()
    }


def stacked(values: dict[Capsule, Tensor]) -> Tensor:
    """Places in reading order, then types: shape (L, J, …)."""
    types = 1 + max(j for _, _, j in values)
    ordered = torch.stack([values[key] for key in sorted(values)])
    return ordered.unflatten(0, (-1, types))
