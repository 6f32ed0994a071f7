"""Routing by agreement on the processor: blocks of children that stay in the cache.

Equal to `dynamic_routing` up to rounding, gradients included. Two things make it fast:

- The logits of iteration t are û_{j|i}·V_j with V = v¹ + … + vᵗ, linear in the parents so far: an
  iteration needs nothing of the one before but V, so that children can be taken block by block.
- The gradients are written out. Nothing of the size of J·B·E·I is ever kept: what the backward
  pass needs is computed again, in the cache, and only the couplings are saved.

Shape suffixes as in capsrepro/models/routing.py, but I are the children of one block, and
    N  blocks    X  E·I    S  2, two tensors side by side    K  J·D
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.routing import Gradient, shares, squash_sums

# Numbers of a block's largest tensor, one per parent, image, dimension and child: 4 MB in float32.
_BLOCK = 2**20


def routing_in_blocks(
    children_BEI: Tensor,
    transforms_JEID: Tensor,
    iterations: int,
    *,
    bias_JD: Tensor | None = None,
    gradient: Gradient = "full",
    none_of_the_above: bool = False,
) -> Tensor:
    """Procedure 1 of DR17; arguments and result as in `factored_dynamic_routing`.

    Differentiable once.
    """
    J, _, _, D = transforms_JEID.shape
    B = len(children_BEI)
    children_NBEI, matrices_NXJD = _blocks(children_BEI, transforms_JEID)
    N = len(children_NBEI)
    # Equal shares, 1/J or 1/(J+1): no coupling is needed.
    flat_NBK = torch.bmm(children_NBEI.view(N, B, -1), matrices_NXJD.reshape(N, -1, J * D))
    sums_JBD = (flat_NBK.sum(0) / (J + none_of_the_above)).view(B, J, D).transpose(0, 1)
    so_far_JBD: Tensor | None = None
    for _ in range(1, iterations):
        if gradient == "detached":
            sums_JBD = sums_JBD.detach()
        parents_JBD = squash_sums(sums_JBD, bias_JD)
        so_far_JBD = parents_JBD if so_far_JBD is None else so_far_JBD + parents_JBD
        if gradient == "detached":
            so_far_JBD = so_far_JBD.detach()
        sums_JBD = _RoutedSums.apply(
            children_NBEI, matrices_NXJD, so_far_JBD, gradient == "full", none_of_the_above
        )
    return squash_sums(sums_JBD, bias_JD).transpose(0, 1)


def _blocks(children_BEI: Tensor, transforms_JEID: Tensor) -> tuple[Tensor, Tensor]:
    """Poses and matrices by block; children that fill up the last one are 0 and add nothing."""
    J, E, I, D = transforms_JEID.shape
    B = len(children_BEI)
    N = math.ceil(J * B * E * I / _BLOCK)
    size = math.ceil(I / N)
    if size > 16:
        size = math.ceil(size / 16) * 16
    N = math.ceil(I / size)
    missing = N * size - I
    if missing:
        children_BEI = F.pad(children_BEI, (0, missing))
        transforms_JEID = F.pad(transforms_JEID, (0, 0, 0, missing))
    children_NBEI = children_BEI.view(B, E, N, size).permute(2, 0, 1, 3).contiguous()
    matrices_NEIJD = transforms_JEID.view(J, E, N, size, D).permute(2, 1, 3, 0, 4)
    return children_NBEI, matrices_NEIJD.reshape(N, E * size, J, D)


class _RoutedSums(torch.autograd.Function):
    """s_j = Σ_i c_ij û_{j|i}, where c_ij is the softmax over the parents of û_{j|i}·V_j."""

    @staticmethod
    def forward(
        ctx: Any,
        children_NBEI: Tensor,
        matrices_NXJD: Tensor,
        so_far_JBD: Tensor,
        full: bool,
        none_of_the_above: bool,
    ) -> Tensor:
        N, B, E, I = children_NBEI.shape
        J, _, D = so_far_JBD.shape
        coupling_NJBI = children_NBEI.new_empty(N, J, B, I)
        pulled_JBX = children_NBEI.new_empty(J, B, E * I)
        pulled_JBEI = pulled_JBX.view(J, B, E, I)
        sums_JBD = children_NBEI.new_zeros(J, B, D)
        for children_BEI, matrices_XJD, coupling_JBI in zip(
            children_NBEI, matrices_NXJD, coupling_NJBI, strict=True
        ):
            torch.bmm(so_far_JBD, matrices_XJD.permute(1, 2, 0), out=pulled_JBX)
            logits_JBI = pulled_JBEI.mul_(children_BEI).sum(2)
            coupling_JBI.copy_(shares(logits_JBI, 0, none_of_the_above))
            torch.mul(coupling_JBI.unsqueeze(2), children_BEI, out=pulled_JBEI)
            sums_JBD.baddbmm_(pulled_JBX, matrices_XJD.transpose(0, 1))
        ctx.full = full
        ctx.save_for_backward(children_NBEI, matrices_NXJD, so_far_JBD, coupling_NJBI)
        return sums_JBD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_JBD: Tensor) -> tuple[Tensor | None, ...]:
        children_NBEI, matrices_NXJD, so_far_JBD, coupling_NJBI = ctx.saved_tensors
        N, B, E, I = children_NBEI.shape
        J, _, D = so_far_JBD.shape
        S = 2 if ctx.full else 1
        matrices_wanted = ctx.needs_input_grad[1]
        # Side by side: the gradient of s, which couplings weigh, and V, which the gradients of
        # logits weigh. Both meet the same matrices and children.
        sides = [gradient_JBD, so_far_JBD][:S]
        sides_JSBD = torch.stack(sides, 1).view(J, S * B, D)
        of_children = torch.empty_like(children_NBEI)
        of_matrices = torch.empty_like(matrices_NXJD)
        of_so_far = torch.zeros_like(so_far_JBD, memory_format=torch.contiguous_format)
        pulled_JSBEI = children_NBEI.new_empty(J, S, B, E, I)
        product_JSBEI = torch.empty_like(pulled_JSBEI)
        weights_JSBI = children_NBEI.new_empty(J, S, B, I)
        for n in range(N):
            children_BEI, matrices_JXD = children_NBEI[n], matrices_NXJD[n].transpose(0, 1)
            torch.bmm(
                sides_JSBD, matrices_JXD.transpose(1, 2), out=pulled_JSBEI.view(J, S * B, E * I)
            )
            weights_JSBI[:, 0] = coupling_NJBI[n]
            if ctx.full:
                torch.mul(pulled_JSBEI[:, 0], children_BEI, out=product_JSBEI[:, 0])
                weighted_JBI = product_JSBEI[:, 0].sum(2).mul_(coupling_NJBI[n])
                mean_BI = weighted_JBI.sum(0)
                weights_JSBI[:, 1] = weighted_JBI.addcmul_(coupling_NJBI[n], mean_BI, value=-1)
            torch.sum(pulled_JSBEI.mul_(weights_JSBI.unsqueeze(3)), (0, 1), out=of_children[n])
            torch.mul(weights_JSBI.unsqueeze(3), children_BEI, out=product_JSBEI)
            product_JSBX = product_JSBEI.view(J, S * B, E * I)
            if matrices_wanted:
                gradient_JXD = of_matrices[n].transpose(0, 1)
                torch.bmm(product_JSBX.transpose(1, 2), sides_JSBD, out=gradient_JXD)
            if ctx.full:
                of_so_far.baddbmm_(product_JSBX[:, B:], matrices_JXD)
        return (
            of_children,
            of_matrices if matrices_wanted else None,
            of_so_far if ctx.full else None,
            None,
            None,
        )
