"""EM routing: Hinton, Sabour, Frosst 2018 (EM18), Procedure 1, Equations 1 and 2.

Shape suffixes: see `capsrepro.models.votes`; I types of children, K places of one kernel.

`em_routing` is one function for all layers and both readings; `EMRouting` holds every choice that
the paper leaves open or its authors' program makes differently:

    activation     text: a = logistic(λ(β_a − Σ_h (β_u + ln σ_h) ΣR)), Procedure 1
                   code: logistic(λ(ΣR (−Σ_h ln σ²_h − β_u 16 (ln 2π + 1)) − 5000 β_a))
    σ²             text: as it is, kept from 0 by a tiny floor; code: 5e-4 added
    mean           code: 0.9 of the new one and 0.1 of the last; at first 0
    λ              0.01 (1 − 0.95^(i+1)) in iteration i = 0, 1, …; code: a quarter of it for the
                   class layer
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from capsrepro.models.cpu.type_shares import shares_of_types
from capsrepro.models.receptive_fields import ReceptiveFields
from capsrepro.models.votes import MASS_EPSILON, Votes

Activation = Literal["procedure-1", "released-code", "mixing-proportion"]
Assignment = Literal["sum", "mean"]


@dataclass(frozen=True)
class EMRouting:
    """Every choice of one layer's routing.

    Attributes:
        iterations: M-steps, at least 1; an E-step stands between any two.
        activation: How a parent's activation follows from cost and mass; `mixing-proportion` is
            its share of the mass of the whole layer (EM18 §5).
        inverse_temperature: The λ that the schedule goes to.
        variance_floor: Added to every σ².
        new_share: Share of the new mean in the one that is kept; 1 is the paper.
        assignment: `sum` as printed; `mean` divides ΣR by what a parent gets on average, so that
            costs do not depend on the sizes of layers (Gritzman 2019, second pitfall).
    """

    iterations: int
    activation: Activation
    inverse_temperature: float
    variance_floor: float
    new_share: float
    assignment: Assignment


class Parents(NamedTuple):
    """What an M-step gives.

    Attributes:
        poses: Means, the parents' poses, shape (T, R, J, C).
        activations: In [0, 1], shape (T, J).
        log_activations: Their logarithms, finite where the activation rounds to 0.
        variances: σ² of the votes, floor included, shape (T, R, J, C).
        shares: Shape (T, J, N), how a child shares out what all types at the place get of it.
        reach: Shape (T, N), how much that is.
    """

    poses: Tensor
    activations: Tensor
    log_activations: Tensor
    variances: Tensor
    shares: Tensor
    reach: Tensor

    @property
    def assignments(self) -> Tensor:
        """The R it was fitted with, before the children's activations, shape (T, J, N)."""
        return self.shares * self.reach.unsqueeze(1)


def em_routing(
    votes: Votes,
    activations_TN: Tensor,
    fields: ReceptiveFields,
    beta_a_J: Tensor,
    beta_u_J: Tensor,
    how: EMRouting,
) -> list[Parents]:
    """Procedure 1 of EM18 for one layer.

    The E-step stays in logarithms: densities of 16 dimensions leave float32 long before σ does.

    Args:
        votes: Of N children for J types of parents at each of T = B·L places.
        activations_TN: Of the children, in [0, 1].
        fields: Which places of parents see which children.
        beta_a_J: Learned, one for each type of parent.
        beta_u_J: Learned, one for each type of parent.
        how: See `EMRouting`.

    Returns:
        The parents after each M-step; the last are the result.
    """
    parents: list[Parents] = []
    shares_TJN, reach_TN = _uniform(activations_TN, fields, len(beta_a_J))
    for iteration in range(how.iterations):
        if parents:
            shares_TJN, reach_TN = _e_step(votes, parents[-1], fields)
        before = parents[-1].poses if parents else None
        temperature = how.inverse_temperature * (1 - 0.95 ** (iteration + 1))
        factors_TN = reach_TN * activations_TN
        mass_TJ, poses_TRJC, variances_TRJC = votes.moments(shares_TJN, factors_TN)
        if how.new_share != 1:
            mean_TRJC, old = poses_TRJC, 0 if before is None else before
            poses_TRJC = how.new_share * mean_TRJC + (1 - how.new_share) * old
            variances_TRJC = variances_TRJC + (mean_TRJC - poses_TRJC).square()
        variances_TRJC = variances_TRJC + how.variance_floor
        if how.assignment == "mean":
            mass_TJ = mass_TJ / _children_per_parent(fields, activations_TN, mass_TJ)
        log_a_TJ = _log_activations(
            mass_TJ, variances_TRJC, beta_a_J, beta_u_J, temperature, how.activation, fields
        )
        parents.append(
            Parents(poses_TRJC, log_a_TJ.exp(), log_a_TJ, variances_TRJC, shares_TJN, reach_TN)
        )
    return parents


def _uniform(
    activations_TN: Tensor, fields: ReceptiveFields, parents: int
) -> tuple[Tensor, Tensor]:
    """R = 1/|Ω|: a child shares itself equally among all parents that see it, so 1/J at least."""
    (T, N), (L, K) = activations_TN.shape, fields.windows.shape
    seen_LK = fields.seen[fields.windows].to(activations_TN.dtype)
    reach_LN = (1 / seen_LK).unsqueeze(2).expand(L, K, N // K).reshape(L, N)
    shares_TJN = activations_TN.new_full((1, 1, 1), 1 / parents).expand(T, parents, N)
    return shares_TJN, reach_LN.repeat(T // L, 1)


def _e_step(votes: Votes, parents: Parents, fields: ReceptiveFields) -> tuple[Tensor, Tensor]:
    """R_ij = a_j p_j / Σ_k a_k p_k, the sum over every parent that sees child i.

    First among the types at one place, then among the places.
    """
    L, K = fields.windows.shape
    constant_TJ = -0.5 * (2 * math.pi * parents.variances).log().sum((1, 3))
    distances_TJN = votes.distances(parents.poses, 0.5 / parents.variances)
    shares_TJN, totals_TN = shares_of_types(parents.log_activations + constant_TJ, distances_TJN)
    T, N = totals_TN.shape
    here_BLKI = totals_TN.view(T // L, L, K, N // K)
    return shares_TJN, (here_BLKI - fields.over_parents(here_BLKI)).exp().view(T, N)


def _children_per_parent(fields: ReceptiveFields, children_TN: Tensor, parents_TJ: Tensor) -> float:
    """Children of the layer for each of its parents."""
    L, K = fields.windows.shape
    types = children_TN.shape[1] // K
    return int((fields.seen > 0).sum()) * types / (L * parents_TJ.shape[1])


def _log_activations(
    mass_TJ: Tensor,
    variances_TRJC: Tensor,
    beta_a_J: Tensor,
    beta_u_J: Tensor,
    temperature: float,
    activation: Activation,
    fields: ReceptiveFields,
) -> Tensor:
    """Logarithm of a_j, shape (T, J); see the top of this file."""
    if activation == "mixing-proportion":
        logs_TJ = (mass_TJ + MASS_EPSILON).log()
        layers = logs_TJ.view(-1, fields.windows.shape[0] * logs_TJ.shape[1])
        return layers.log_softmax(1).view_as(logs_TJ)
    size = variances_TRJC.shape[1] * variances_TRJC.shape[3]
    logs_TJ = variances_TRJC.log().sum((1, 3))
    if activation == "procedure-1":
        logits_TJ = beta_a_J - mass_TJ * (size * beta_u_J + 0.5 * logs_TJ)
    else:
        entropy = size * (math.log(2 * math.pi) + 1)
        logits_TJ = -mass_TJ * (logs_TJ + entropy * beta_u_J) - 5000 * beta_a_J
    return F.logsigmoid(temperature * logits_TJ)
