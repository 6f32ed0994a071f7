"""EM routing on CUDA with votes that are made in registers and never written out.

`FusedVotes` has the sums over votes of EM routing, and `fused_em_routing` is `em_routing` made of
them, for 4×4 poses: each sum makes the votes again from poses and transforms, and so does its
gradient. What is as large as R_TJN is written once in each E-step and read where it is needed.
Shape suffixes: see `capsrepro.models.votes` and, for the order in memory in which the kernels work,
`capsrepro.models.votes_kernels`.

Gradients of poses and transforms are sums of products over all votes. Those of the votes are
    ∂V = Σ_u w_u (slope_u V + level_u)
over the uses u that were made of them, so that one pass for the poses and one for the transforms
serve all uses: each use hands w_u, slope_u and level_u to `_Handles`, as the gradients of two
handles which have the shapes of these and no content.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models import votes as votes_module
from capsrepro.models.em_routing import (
    EMRouting,
    Fit,
    first_shares,
    log_constants,
    m_step,
    over_parents,
)
from capsrepro.models.receptive_fields import ReceptiveFields
from capsrepro.models.votes import Moments

# Most places of a block; places of one thread where children are looped over; children of one
# thread where their votes' gradients are gathered.
_BLOCK, _PLACES, _CHILDREN = 128, 2, 2
# Programs that fill the largest cards several times over, and the least steps of a program's loop
# that are worth its start.
_PROGRAMS, _LEAST_STEPS = 4096, 16


class Layout(NamedTuple):
    """Sizes that the kernels work with; see `capsrepro.models.votes_kernels`."""

    T: int
    P: int
    Q: int
    J: int
    N: int


class FusedVotes:
    """Votes of 4×4 poses that live in registers only.

    Args:
        patches_NTRK: Poses of the children that each place sees.
        transforms_NKJC: Matrices W.
        offsets_NRC: Added to every vote; no gradient flows into them. None: nothing is added.
        iterations: How often `moments` will be called; `offers` comes between.
    """

    def __init__(
        self,
        patches_NTRK: Tensor,
        transforms_NKJC: Tensor,
        offsets_NRC: Tensor | None,
        iterations: int,
    ) -> None:
        N, T, _, _ = patches_NTRK.shape
        J, Q = transforms_NKJC.shape[2], min(_BLOCK, max(32, 1 << (T - 1).bit_length()))
        self.layout = Layout(T, -(-T // Q), Q, J, N)
        with torch.no_grad():
            self.factors = (
                _blocked(patches_NTRK.flatten(2).transpose(0, 1), self.layout),
                transforms_NKJC.transpose(1, 2).contiguous(),
                None if offsets_NRC is None else offsets_NRC.contiguous(),
            )
        uses = 2 * iterations - 1
        handles = _Handles.apply(patches_NTRK, transforms_NKJC, self.factors, self.layout, uses)
        self._handles = [handles[2 * u : 2 * u + 2] for u in reversed(range(uses))]

    def first_moments(self, weights_TN: Tensor) -> Moments:
        """See `Votes.moments`, for weights that are the same for all parents."""
        return self._moments(None, None, _children(weights_TN, self.layout))

    def moments(self, logs_PNJQ: Tensor, over_TN: Tensor, activations_TN: Tensor) -> Moments:
        """See `Votes.moments`, for the weights w = exp(log − over) · activation."""
        over_PNQ, active_PNQ = (_children(x, self.layout) for x in (over_TN, activations_TN))
        return self._moments(logs_PNJQ, over_PNQ, active_PNQ)

    def _moments(
        self, logs_PNJQ: Tensor | None, over_PNQ: Tensor | None, active_PNQ: Tensor
    ) -> Moments:
        mass_PJQ, mean_PJFQ, variance_PJFQ = _Moments.apply(
            logs_PNJQ, over_PNQ, active_PNQ, *self._handles.pop(), self.factors, self.layout
        )
        return Moments(
            _places(mass_PJQ, self.layout),
            _parents(mean_PJFQ, self.layout),
            _parents(variance_PJFQ, self.layout),
        )

    def offers(
        self,
        centres_TRJC: Tensor,
        precisions_TRJC: Tensor,
        constants_TJ: Tensor,
        activations_TN: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What an E-step makes of each child.

        Returns:
            log = constant − ½ Σ precision · (V − centre)², shape (P, N, J, Q), good for `moments`
            with the same activations and for nothing else, since its gradient is short of them;
            and the log Σ exp of it over J, shape (T, N).
        """
        centres, precisions = (
            _blocked(x.transpose(1, 2).flatten(2), self.layout)
            for x in (centres_TRJC, precisions_TRJC)
        )
        constants_PJQ = _children(constants_TJ, self.layout)
        active_PNQ = _children(activations_TN.detach(), self.layout)
        logs_PNJQ, here_PNQ = _Offers.apply(
            centres, precisions, constants_PJQ, active_PNQ, *self._handles.pop(), self.factors,
            self.layout,
        )
        return logs_PNJQ, _places(here_PNQ, self.layout)


def supports(poses: Tensor) -> bool:
    """Whether the kernels can route capsules of these poses, shape (…, R, C)."""
    return (
        poses.is_cuda
        and poses.dtype == torch.float32
        and poses.shape[-2:] == (4, 4)
        and find_spec("triton") is not None
    )


def fused_em_routing(
    votes: FusedVotes,
    activations_TN: Tensor,
    fields: ReceptiveFields,
    beta_a_J: Tensor,
    beta_u_J: Tensor,
    how: EMRouting,
) -> Fit:
    """The last of the parents that `em_routing` gives; see there."""
    shares_TN = first_shares(activations_TN, fields, len(beta_a_J))
    moments = votes.first_moments(shares_TN * activations_TN)
    children, betas = activations_TN.shape[1], (beta_a_J, beta_u_J)
    fit = m_step(moments, None, 0, children, fields, *betas, how)
    for iteration in range(1, how.iterations):
        constants_TJ = log_constants(fit.log_activations, fit.variances)
        logs_PNJQ, here_TN = votes.offers(
            fit.poses, 1 / fit.variances, constants_TJ, activations_TN
        )
        moments = votes.moments(logs_PNJQ, over_parents(here_TN, fields), activations_TN)
        fit = m_step(moments, fit.poses, iteration, children, fields, *betas, how)
    return fit


def _blocked(values_TXY: Tensor, layout: Layout) -> Tensor:
    """Shape (P, X, Y, Q), in new memory."""
    filled = F.pad(values_TXY, (0, 0, 0, 0, 0, layout.P * layout.Q - layout.T))
    return filled.view(layout.P, layout.Q, *values_TXY.shape[1:]).permute(0, 2, 3, 1).contiguous()


def _children(values_TX: Tensor, layout: Layout) -> Tensor:
    """Shape (P, X, Q), in new memory."""
    return _blocked(values_TX.unsqueeze(2), layout).squeeze(2)


def _places(values_PXQ: Tensor, layout: Layout) -> Tensor:
    """Shape (T, …)."""
    return values_PXQ.movedim(-1, 1).flatten(0, 1)[: layout.T]


def _parents(values_PJFQ: Tensor, layout: Layout) -> Tensor:
    """Shape (T, R, J, C)."""
    return _places(values_PJFQ, layout).unflatten(2, (4, 4)).transpose(1, 2)


def _split(length: int, programs: int, least: int) -> tuple[int, int]:
    """How many ranges to split a loop into, and the steps of each; by shapes alone."""
    step = min(length, max(least, -(-length * programs // _PROGRAMS)))
    return -(-length // step), step


def _ranges(layout: Layout) -> tuple[int, int]:
    """Of children."""
    return _split(layout.N, layout.P * layout.J, _LEAST_STEPS)


def _over_children(name: str, layout: Layout, factors: Any, before: Any, after: Any, **how) -> None:
    """Run a kernel whose programs each loop over a range of children of one parent."""
    from capsrepro.models import votes_kernels

    parts, step = _ranges(layout)
    getattr(votes_kernels, name)[layout.J, layout.P, parts](
        *before, *_pointers(factors), *after, layout.P, layout.J, layout.N, step,
        HAS=factors[2] is not None, Q=layout.Q, num_warps=max(1, layout.Q // (32 * _PLACES)),
        enable_fp_fusion=True, **how,
    )


def _pointers(factors: Any) -> tuple[Tensor, ...]:
    poses, transforms, offsets = factors
    return poses, transforms, poses if offsets is None else offsets


class _Handles(torch.autograd.Function):
    """Where the gradients of all uses of the votes meet; see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any, patches_NTRK: Tensor, transforms_NKJC: Tensor, factors: Any, layout: Layout,
        uses: int,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.factors, ctx.layout = factors, layout
        P, Q, J, N = layout.P, layout.Q, layout.J, layout.N
        nothing = patches_NTRK.new_zeros(())
        shapes = [(P, N, Q), (P, J, 32, Q)] + (uses - 1) * [(P, N, J, Q), (P, J, 32, Q)]
        return tuple(nothing.expand(shape) for shape in shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from capsrepro.models import votes_kernels

        layout, factors = ctx.layout, ctx.factors
        weights = tuple(x for x in gradients[::2] if x is not None)
        lines = tuple(x for x in gradients[1::2] if x is not None)
        poses_PNFQ, transforms_NJKC, _ = factors
        at_once = _CHILDREN if layout.N % _CHILDREN == 0 else 1
        blocks = layout.N // at_once
        options = {
            "HAS": factors[2] is not None, "U": len(weights), "Q": layout.Q, "BN": at_once,
            "num_warps": layout.Q // 32, "enable_fp_fusion": True,
        }
        d_patches = d_transforms = None
        if weights and ctx.needs_input_grad[0]:
            d_poses_PNFQ = torch.empty_like(poses_PNFQ)
            votes_kernels.pull_poses[blocks, layout.P](
                weights, lines, *_pointers(factors), d_poses_PNFQ, 0, layout.J, layout.N, **options
            )
            d_patches = _places(d_poses_PNFQ, layout).transpose(0, 1).unflatten(2, (4, 4))
        if weights and ctx.needs_input_grad[1]:
            parts, step = _split(layout.P, layout.J * blocks, 1)
            d_transforms_SNJKC = poses_PNFQ.new_empty(parts, *transforms_NJKC.shape)
            votes_kernels.pull_transforms[layout.J, blocks, parts](
                weights, lines, *_pointers(factors), d_transforms_SNJKC,
                0, layout.P, layout.J, layout.N, step, **options,
            )
            d_transforms = d_transforms_SNJKC.sum(0).transpose(1, 2)
        return d_patches, d_transforms, None, None, None


class _Moments(torch.autograd.Function):
    """`FusedVotes.moments`, and `first_moments` where logs and over are None.

    Gradients are those of `capsrepro.models.votes`. With q = R ∂w, those of activations and over
    are Σ_j q and −a Σ_j q; a q is that of the logs, and q is what `_Offers` is handed for it, so
    that nothing is divided by an activation of 0.
    """

    @staticmethod
    def forward(
        ctx: Any, logs_PNJQ: Tensor | None, over_PNQ: Tensor | None, active_PNQ: Tensor,
        handle: Tensor, handle_PJ2FQ: Tensor, factors: Any, layout: Layout,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from capsrepro.models import votes_kernels

        parts, _ = _ranges(layout)
        shape = layout.P, layout.J, 16, layout.Q
        mass_SPJQ = active_PNQ.new_empty(parts, layout.P, layout.J, layout.Q)
        mean_SPJFQ, square_SPJFQ = (active_PNQ.new_empty(parts, *shape) for _ in range(2))
        sums = mass_SPJQ, mean_SPJFQ, square_SPJFQ
        first = logs_PNJQ is None
        weights = [active_PNQ if x is None else x for x in (logs_PNJQ, over_PNQ, active_PNQ)]
        _over_children("fit", layout, factors, weights, sums, FIRST=first)
        mass_PJQ = torch.empty_like(mass_SPJQ[0])
        mean_PJFQ, variance_PJFQ = (active_PNQ.new_empty(shape) for _ in range(2))
        votes_kernels.merge[layout.P * layout.J,](
            *sums, mass_PJQ, mean_PJFQ, variance_PJFQ,
            votes_module.MASS_EPSILON, layout.P * layout.J, parts, Q=layout.Q,
            num_warps=layout.Q // 32, enable_fp_fusion=True,
        )
        ctx.factors, ctx.layout, ctx.first = factors, layout, first
        ctx.save_for_backward(*weights, mass_PJQ, mean_PJFQ, variance_PJFQ)
        return mass_PJQ, mean_PJFQ, variance_PJFQ

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_mass_PJQ: Tensor, d_mean_PJFQ: Tensor, d_variance_PJFQ: Tensor
    ) -> tuple[Tensor | None, ...]:
        *weights, mass_PJQ, mean_PJFQ, variance_PJFQ = ctx.saved_tensors
        active_PNQ, layout, epsilon = weights[2], ctx.layout, votes_module.MASS_EPSILON
        divisor = (mass_PJQ + epsilon).unsqueeze(2)
        k_PJFQ = d_variance_PJFQ.contiguous() / divisor
        h_PJFQ = (d_mean_PJFQ - 2 * epsilon * mean_PJFQ * k_PJFQ).contiguous() / divisor
        rest_PJQ = (d_mass_PJQ - (variance_PJFQ * k_PJFQ).sum(2)).contiguous()
        shared_PNJQ = active_PNQ.new_empty(layout.P, layout.N, layout.J, layout.Q)
        used = active_PNQ if ctx.first else torch.empty_like(shared_PNJQ)
        before = *weights, mean_PJFQ, k_PJFQ, h_PJFQ, rest_PJQ
        after = shared_PNJQ, used
        _over_children("slope_weights", layout, ctx.factors, before, after, FIRST=ctx.first)
        # ∂V = w (h + 2 k (V − μ))
        lines_PJ2FQ = torch.cat([2 * k_PJFQ, h_PJFQ - 2 * k_PJFQ * mean_PJFQ], 2)
        d_active_PNQ = shared_PNJQ.sum(2)
        if ctx.first:
            return None, None, d_active_PNQ, used, lines_PJ2FQ, None, None
        d_over_PNQ = -active_PNQ * d_active_PNQ
        return shared_PNJQ, d_over_PNQ, d_active_PNQ, used, lines_PJ2FQ, None, None


class _Offers(torch.autograd.Function):
    """`FusedVotes.offers`.

    With D = V − centre and the gradient g of the logs, in which that of here_PNQ has its part,
        ∂V = −g precision D,   ∂centre = Σ_n g precision D,   ∂precision = −½ Σ_n g D².
    """

    @staticmethod
    def forward(
        ctx: Any, centres_PJFQ: Tensor, precisions_PJFQ: Tensor, constants_PJQ: Tensor,
        active_PNQ: Tensor, handle: Tensor, handle_PJ2FQ: Tensor, factors: Any, layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        from capsrepro.models import votes_kernels

        logs_PNJQ = active_PNQ.new_empty(layout.P, layout.N, layout.J, layout.Q)
        here_PNQ = torch.empty_like(active_PNQ)
        before = centres_PJFQ, precisions_PJFQ, constants_PJQ
        _over_children("offer", layout, factors, before, [logs_PNJQ])
        votes_kernels.total[layout.P * layout.N,](
            logs_PNJQ, here_PNQ, layout.J, Q=layout.Q, num_warps=layout.Q // 32,
            enable_fp_fusion=True,
        )
        ctx.factors, ctx.layout = factors, layout
        ctx.save_for_backward(centres_PJFQ, precisions_PJFQ, active_PNQ, logs_PNJQ, here_PNQ)
        return logs_PNJQ, here_PNQ

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, shared_PNJQ: Tensor, d_here_PNQ: Tensor
    ) -> tuple[Tensor | None, ...]:
        centres_PJFQ, precisions_PJFQ, active_PNQ, logs_PNJQ, here_PNQ = ctx.saved_tensors
        parts, _ = _ranges(ctx.layout)
        d_logs_PNJQ = torch.empty_like(logs_PNJQ)
        first_SPJFQ, second_SPJFQ = (
            centres_PJFQ.new_empty(parts, *centres_PJFQ.shape) for _ in range(2)
        )
        zeroth_SPJQ = torch.empty_like(first_SPJFQ[:, :, :, 0])
        before = logs_PNJQ, here_PNQ, active_PNQ, shared_PNJQ, d_here_PNQ.contiguous(), centres_PJFQ
        after = d_logs_PNJQ, zeroth_SPJQ, first_SPJFQ, second_SPJFQ
        _over_children("slope_parents", ctx.layout, ctx.factors, before, after)
        lines_PJ2FQ = torch.cat([-precisions_PJFQ, precisions_PJFQ * centres_PJFQ], 2)
        return (
            precisions_PJFQ * first_SPJFQ.sum(0),
            -0.5 * second_SPJFQ.sum(0),
            zeroth_SPJQ.sum(0),
            None,
            d_logs_PNJQ,
            lines_PJ2FQ,
            None,
            None,
        )
