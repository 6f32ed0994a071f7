"""Routing by agreement on the processor: votes made in registers by compiled loops.

Equal to `dynamic_routing` up to rounding, gradients included, with no more votes in memory than one
child's. Logits are linear in the parents so far, b_ij = û_{j|i}·V_j with V = v¹ + … + vᵗ, so that
an iteration is one pass over the children, and so is its gradient; what all iterations together
want of children and matrices is one pass more. Children are cut into the same parts however many
threads there are, and sums of the parts are added in one order: results depend on neither.

Shape suffixes: as in capsrepro/models/routing.py and, of what the loops see,
`capsrepro.models.cpu.routing_code`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.cpu.routing_code import Pose
from capsrepro.models.cpu.routing_loops import Loops
from capsrepro.models.cpu.vector_code import lanes_of
from capsrepro.models.routing import Gradient, squash, will_be_differentiated


def compiled_dynamic_routing(
    children_BEI: Tensor,
    transforms_JEID: Tensor,
    iterations: int,
    *,
    bias_JD: Tensor | None = None,
    gradient: Gradient = "full",
    none_of_the_above: bool = False,
) -> Tensor:
    """Procedure 1 of DR17; arguments and result as in `factored_dynamic_routing`.

    Only where `capsrepro.models.cpu.threads.can_compile` says so. Differentiable once.
    """
    J, E, _, D = transforms_JEID.shape
    inputs = children_BEI, transforms_JEID, bias_JD
    trains = will_be_differentiated(*inputs)
    through_logits = trains and gradient == "full" and iterations > 1
    pose = Pose(E, D, none_of_the_above)
    sums_UJDV: Tensor = _RoutedSums.apply(*inputs, iterations, through_logits, pose)
    sums_BJD = sums_UJDV.permute(0, 3, 1, 2).reshape(-1, J, D)[: len(children_BEI)]
    return squash(sums_BJD if bias_JD is None else sums_BJD + bias_JD)


class _RoutedSums(torch.autograd.Function):
    """The s_j of the last iteration."""

    @staticmethod
    def forward(
        ctx: Any,
        children_BEI: Tensor,
        transforms_JEID: Tensor,
        bias_JD: Tensor | None,
        iterations: int,
        through_logits: bool,
        pose: Pose,
    ) -> Tensor:
        """Sums s_UJDV. Couplings are kept of all iterations or, as constants, of the last."""
        matrices_IJED = transforms_JEID.permute(2, 0, 1, 3).contiguous()
        loops = Loops(_in_vectors(children_BEI), matrices_IJED, pose)
        R = iterations - 1
        L = R if through_logits else 0
        couplings_TIUJV = loops.empty("IUJV", L or min(1, R))
        biased_RUJDV, so_far_RUJDV = (loops.empty("UJDV", R) for _ in range(2))
        sums_UJDV = loops.equal_shares()
        for r in range(R):
            biased_RUJDV[r] = sums_UJDV if bias_JD is None else sums_UJDV + bias_JD.unsqueeze(2)
            so_far_RUJDV[r] = squash(biased_RUJDV[r], dim=2)
            if r:
                so_far_RUJDV[r] += so_far_RUJDV[r - 1]
            slot = min(r, len(couplings_TIUJV) - 1)
            sums_UJDV = loops.route(so_far_RUJDV[r], couplings_TIUJV[slot])
        ctx.pose, ctx.images = pose, len(children_BEI)
        factors = loops.children_IUEV, loops.matrices_IJED
        ctx.save_for_backward(*factors, couplings_TIUJV, biased_RUJDV[:L], so_far_RUJDV[:L])
        return sums_UJDV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sums_UJDV: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of children, matrices and of the bias within all iterations but the last."""
        children_IUEV, matrices_IJED, couplings_TIUJV, biased_LUJDV, so_far_LUJDV = (
            ctx.saved_tensors
        )
        loops, L = Loops(children_IUEV, matrices_IJED, ctx.pose), len(so_far_LUJDV)
        d_logits_LIUJV = torch.empty_like(couplings_TIUJV[:L])
        # Of each iteration; where couplings are constants, of the last.
        d_sums_SUJDV = loops.empty("UJDV", L + 1)
        d_sums_SUJDV[L] = d_sums_UJDV
        d_so_far_UJDV = torch.zeros_like(d_sums_SUJDV[L])
        for t in reversed(range(L)):
            # V of an iteration is part of every later one.
            d_so_far_UJDV += loops.through_logits(
                d_sums_SUJDV[t + 1], couplings_TIUJV[t], d_logits_LIUJV[t]
            )
            d_sums_SUJDV[t] = _d_squash(biased_LUJDV[t], d_so_far_UJDV)
        d_bias_JD = d_sums_SUJDV[:L].sum((0, 1, 4)) if ctx.needs_input_grad[2] else None
        base_UJDV, first = torch.zeros_like(d_so_far_UJDV), 0
        if len(d_sums_SUJDV) > len(couplings_TIUJV):
            base_UJDV, first = d_sums_SUJDV[0] * loops.equal_share, 1
        terms = couplings_TIUJV, d_sums_SUJDV[first:], d_logits_LIUJV, so_far_LUJDV
        d_children_IUEV, d_matrices_IJED = loops.to_factors(
            base_UJDV, terms, matrices=ctx.needs_input_grad[1]
        )
        d_children_BEI = d_children_IUEV.permute(1, 3, 2, 0).flatten(0, 1)[: ctx.images]
        d_transforms_JEID = None
        if d_matrices_IJED is not None:
            d_transforms_JEID = d_matrices_IJED.permute(1, 2, 0, 3).contiguous()
        return d_children_BEI.contiguous(), d_transforms_JEID, d_bias_JD, *[None] * 3


def _in_vectors(children_BEI: Tensor) -> Tensor:
    """Poses u_IUEV: images 16 by 16, with such at 0 in place of those that are missing."""
    V = lanes_of(children_BEI.dtype)
    missing = -len(children_BEI) % V
    if missing:
        children_BEI = F.pad(children_BEI, (0, 0, 0, 0, 0, missing))
    B, E, I = children_BEI.shape
    return children_BEI.reshape(B // V, V, E, I).permute(3, 0, 2, 1).contiguous()


def _d_squash(sums_UJDV: Tensor, slopes_UJDV: Tensor) -> Tensor:
    """Gradient of the squash."""
    with torch.enable_grad():
        sums_UJDV = sums_UJDV.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(squash(sums_UJDV, dim=2), sums_UJDV, slopes_UJDV)
    return slopes
