"""Routing by agreement: Sabour et al. 2017 (arXiv 1710.09829v2), Section 2, Procedure 1.

Shape suffixes, here and in every model:
    B  images of a batch            I  child capsules (of the layer below)
    J  parent capsules              E  dimensions of a child's pose
    D  dimensions of a parent's pose

A routing is a function from votes to parents. `dynamic_routing` is Procedure 1 as printed and the
reference for all others; `factored_dynamic_routing` computes the same without ever writing the
votes, which are by far the largest tensor of the network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Gradient = Literal["full", "detached"]

# Neither the paper nor the authors' code guards s = 0, where the gradient of |s| is 0/0.
_EPSILON = 1e-9


def length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last axis, with a finite gradient at zero.

    Args:
        vectors: Shape (..., D).

    Returns:
        Shape (...).
    """
    return (vectors.square().sum(-1) + _EPSILON).sqrt()


def squash(vectors: Tensor, dim: int = -1) -> Tensor:
    """Shrink lengths into [0, 1) and keep directions (DR17 Eq. 1).

    Args:
        vectors: Any shape.
        dim: The axis along which one vector's numbers lie.

    Returns:
        |s|²/(1+|s|²) · s/|s|, same shape. Departs from the paper by an epsilon under the root.
    """
    squared = vectors.square().sum(dim, keepdim=True)
    return vectors * (squared / (1 + squared) * (squared + _EPSILON).rsqrt())


def dynamic_routing(
    votes_BIJD: Tensor,
    iterations: int,
    *,
    bias_JD: Tensor | None = None,
    gradient: Gradient = "full",
    none_of_the_above: bool = False,
) -> Tensor:
    """Procedure 1 of DR17, written as it is printed.

    Args:
        votes_BIJD: Predictions û_{j|i} of child i for parent j.
        iterations: How often v is evaluated, at least 1; with 1 every parent gets the same share.
        bias_JD: Added to s_j before the squash; only the authors' code has it.
        gradient: `full` differentiates through all iterations as the authors' code does;
            `detached` treats the couplings as constants.
        none_of_the_above: One more parent takes part in the softmax and gets what fits no other;
            its logit stays 0 and its share goes nowhere (DR17 §7, CIFAR-10; the authors' code
            calls it leaky).

    Returns:
        Parent capsules v_BJD.
    """
    routed_BIJD = votes_BIJD if gradient == "full" else votes_BIJD.detach()
    logits_BIJ = votes_BIJD.new_zeros(votes_BIJD.shape[:3])
    for _ in range(iterations - 1):
        coupling_BIJ = _shares(logits_BIJ, 2, none_of_the_above)
        parents_BJD = _parents(coupling_BIJ, routed_BIJD, bias_JD)
        logits_BIJ = logits_BIJ + torch.einsum("bijd,bjd->bij", routed_BIJD, parents_BJD)
    if gradient == "detached":
        logits_BIJ = logits_BIJ.detach()
    return _parents(_shares(logits_BIJ, 2, none_of_the_above), votes_BIJD, bias_JD)


def _shares(logits: Tensor, dim: int, none_of_the_above: bool) -> Tensor:
    """Eq. 3: the softmax over the parents, which lie along `dim`; same shape as the logits."""
    if not none_of_the_above:
        return logits.softmax(dim)
    parents = logits.shape[dim]
    nowhere = torch.zeros_like(logits.narrow(dim, 0, 1))
    return torch.cat([logits, nowhere], dim).softmax(dim).narrow(dim, 0, parents)


def _parents(coupling_BIJ: Tensor, votes_BIJD: Tensor, bias_JD: Tensor | None) -> Tensor:
    """Eq. 2 and Eq. 1: the squashed weighted sum of votes."""
    sums_BJD = torch.einsum("bij,bijd->bjd", coupling_BIJ, votes_BIJD)
    return squash(sums_BJD if bias_JD is None else sums_BJD + bias_JD)


def factored_dynamic_routing(
    children_BEI: Tensor,
    transforms_JEID: Tensor,
    iterations: int,
    *,
    bias_JD: Tensor | None = None,
    gradient: Gradient = "full",
    none_of_the_above: bool = False,
) -> Tensor:
    """Procedure 1 without the votes: equal to `dynamic_routing` up to rounding.

    Since û_{j|i} = u_i W_ij, the weighted sum is s_j = Σ_i (c_ij u_i) W_ij and the agreement is
    û_{j|i}·v_j = u_i·(W_ij v_j): matrix products of sizes (B, E·I) and (E·I, D) per parent. The
    first iteration, with equal couplings, is one product for all parents together. Children run
    along the last axis, so that every elementwise step is one long contiguous loop.

    Args:
        children_BEI: Poses u_i of the layer below.
        transforms_JEID: Matrices W_ij, parent first so that each parent's block is contiguous.
        iterations: As in `dynamic_routing`.
        bias_JD: As in `dynamic_routing`.
        gradient: As in `dynamic_routing`.
        none_of_the_above: As in `dynamic_routing`.

    Returns:
        Parent capsules v_BJD.
    """
    J, E, I, D = transforms_JEID.shape
    B = len(children_BEI)
    matrices_JXD = transforms_JEID.reshape(J, E * I, D)
    routed_BEI, routed_JXD = children_BEI, matrices_JXD
    if gradient == "detached":
        routed_BEI, routed_JXD = children_BEI.detach(), matrices_JXD.detach()

    # Equal shares, 1/J or 1/(J+1): no coupling tensor is needed.
    all_parents_XK = matrices_JXD.transpose(0, 1).reshape(E * I, J * D)
    flat_BK = children_BEI.reshape(B, E * I) @ all_parents_XK / (J + none_of_the_above)
    sums_JBD = flat_BK.view(B, J, D).transpose(0, 1)

    logits_JBI: Tensor | None = None
    for iteration in range(1, iterations):
        if gradient == "detached":
            sums_JBD = sums_JBD.detach()
        parents_JBD = _squash_sums(sums_JBD, bias_JD)
        pulled_JBEI = torch.bmm(parents_JBD, routed_JXD.transpose(1, 2)).view(J, B, E, I)
        agreement_JBI = (pulled_JBEI * routed_BEI).sum(2)
        logits_JBI = agreement_JBI if logits_JBI is None else logits_JBI + agreement_JBI
        coupling_JBI = _shares(logits_JBI, 0, none_of_the_above)
        if gradient == "detached":
            coupling_JBI = coupling_JBI.detach()
        last = iteration == iterations - 1
        shares_JBEI = coupling_JBI.unsqueeze(2) * (children_BEI if last else routed_BEI)
        sums_JBD = torch.bmm(shares_JBEI.reshape(J, B, E * I), matrices_JXD if last else routed_JXD)
    return _squash_sums(sums_JBD, bias_JD).transpose(0, 1)


def will_be_differentiated(*inputs: Tensor | None) -> bool:
    """Whether autograd may ask what is made of these for its gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _squash_sums(sums_JBD: Tensor, bias_JD: Tensor | None) -> Tensor:
    """Eq. 1 with the bias of the authors' code, parents first; same shape."""
    return squash(sums_JBD if bias_JD is None else sums_JBD + bias_JD.unsqueeze(1))
