"""Votes of matrix capsules on CUDA, made in registers and never written out.

`FusedVotes` is `FactoredVotes` in Triton, for 4×4 poses: each sum over votes makes them again from
poses and transforms, and so does its gradient. Shape suffixes: see `capsrepro.models.votes` and,
for the order in memory that the kernels work in, `capsrepro.models.votes_kernels`.

Gradients of poses and transforms are sums of products over all votes. Those of the votes are
    ∂V = Σ_u w_u (slope_u V + level_u)
over the uses u that were made of them, so that one pass for the poses and one for the transforms
serves all uses together: each use hands its w_u, slope_u and level_u back to `_Handles` as the
gradient of two handles, which have the shapes of these and no content.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models import votes as votes_module
from capsrepro.models.votes import Moments

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
    children_at_once: int


class FusedVotes:
    """Votes of 4×4 poses that live in registers only; see `FactoredVotes`.

    Args:
        patches_NTRK: Poses of the children that each place sees.
        transforms_NKJC: Matrices W.
        offsets_NRC: Added to every vote; no gradient flows into them. None: nothing is added.
        uses: How often `moments` and `distances` will be called, together, at most.
    """

    def __init__(
        self,
        patches_NTRK: Tensor,
        transforms_NKJC: Tensor,
        offsets_NRC: Tensor | None = None,
        *,
        uses: int,
    ) -> None:
        self.layout = _layout(patches_NTRK, transforms_NKJC)
        with torch.no_grad():
            self.factors = (
                _blocked(patches_NTRK.flatten(2).transpose(0, 1), self.layout),
                transforms_NKJC.transpose(1, 2).contiguous(),
                None if offsets_NRC is None else offsets_NRC.contiguous(),
            )
        handles = _Handles.apply(
            patches_NTRK, transforms_NKJC, self.factors, self.layout, uses
        )
        self._handles = [handles[2 * u : 2 * u + 2] for u in range(uses)]

    def moments(self, weights_TJN: Tensor) -> Moments:
        """See `Votes`."""
        weights_PNJQ = _blocked(weights_TJN.transpose(1, 2), self.layout)
        moments = _Moments.apply(weights_PNJQ, *self._handles.pop(), self.factors, self.layout)
        mass_PJQ, mean_PJFQ, variance_PJFQ = moments
        return Moments(
            _places(mass_PJQ, self.layout),
            _parents(mean_PJFQ, self.layout),
            _parents(variance_PJFQ, self.layout),
        )

    def distances(self, centres_TRJC: Tensor, precisions_TRJC: Tensor) -> Tensor:
        """See `Votes`."""
        distances_PNJQ = _Distances.apply(
            _blocked(centres_TRJC.transpose(1, 2).flatten(2), self.layout),
            _blocked(precisions_TRJC.transpose(1, 2).flatten(2), self.layout),
            *self._handles.pop(),
            self.factors,
            self.layout,
        )
        return _places(distances_PNJQ, self.layout).transpose(1, 2)


def _layout(patches_NTRK: Tensor, transforms_NKJC: Tensor) -> Layout:
    N, T, _, _ = patches_NTRK.shape
    Q = min(128, max(32, 1 << (T - 1).bit_length()))
    return Layout(T, -(-T // Q), Q, transforms_NKJC.shape[2], N, 2 if N % 2 == 0 else 1)


def _blocked(values_TXY: Tensor, layout: Layout) -> Tensor:
    """Shape (P, X, Y, Q), in new memory."""
    filled = F.pad(values_TXY, (0, 0, 0, 0, 0, layout.P * layout.Q - layout.T))
    return filled.view(layout.P, layout.Q, *values_TXY.shape[1:]).permute(0, 2, 3, 1).contiguous()


def _places(values_PXQ: Tensor, layout: Layout) -> Tensor:
    """Shape (T, …)."""
    return values_PXQ.movedim(-1, 1).flatten(0, 1)[: layout.T]


def _parents(values_PJFQ: Tensor, layout: Layout) -> Tensor:
    """Shape (T, R, J, C)."""
    return _places(values_PJFQ, layout).unflatten(2, (4, 4)).transpose(1, 2)


def _split(length: int, programs: int, least: int) -> tuple[int, int]:
    """How many ranges to split a loop into, and the steps of each; by shapes alone."""
    step = max(least, -(-length * programs // _PROGRAMS))
    step = min(step, length)
    return -(-length // step), step


def _over_children(name: str, layout: Layout, factors: Any, before: Any, after: Any) -> None:
    """Run a kernel whose programs each loop over a range of children of one parent."""
    from capsrepro.models import votes_kernels

    parts, step = _split(layout.N, layout.P * layout.J, _LEAST_STEPS)
    getattr(votes_kernels, name)[layout.J, layout.P, parts](
        *before, *_pointers(factors), *after, layout.P, layout.J, layout.N, step,
        HAS=factors[2] is not None, Q=layout.Q, num_warps=max(1, layout.Q // 64),
        enable_fp_fusion=True,
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
        nothing = patches_NTRK.new_zeros(())
        weights, lines = (layout.P, layout.N, layout.J, layout.Q), (layout.P, layout.J, 32, layout.Q)
        return tuple(
            nothing.expand(shape) for _ in range(uses) for shape in (weights, lines)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from capsrepro.models import votes_kernels

        layout, factors = ctx.layout, ctx.factors
        weights = tuple(x for x in gradients[::2] if x is not None)
        lines = tuple(x for x in gradients[1::2] if x is not None)
        if not weights:
            return None, None, None, None, None
        poses_PNFQ, transforms_NJKC, _ = factors
        blocks = layout.N // layout.children_at_once
        options = {
            "HAS": factors[2] is not None, "U": len(weights), "Q": layout.Q,
            "BN": layout.children_at_once, "num_warps": layout.Q // 32, "enable_fp_fusion": True,
        }
        d_patches = d_transforms = None
        if ctx.needs_input_grad[0]:
            d_poses_PNFQ = torch.empty_like(poses_PNFQ)
            votes_kernels.pull_poses[blocks, layout.P](
                weights, lines, *_pointers(factors), d_poses_PNFQ, 0, layout.J, layout.N, **options
            )
            d_patches = _places(d_poses_PNFQ, layout).transpose(0, 1).unflatten(2, (4, 4))
        if ctx.needs_input_grad[1]:
            parts, step = _split(layout.P, layout.J * blocks, 1)
            d_transforms_SNJKC = poses_PNFQ.new_empty(parts, *transforms_NJKC.shape)
            votes_kernels.pull_transforms[layout.J, blocks, parts](
                weights, lines, *_pointers(factors), d_transforms_SNJKC,
                0, layout.P, layout.J, layout.N, step, **options,
            )
            d_transforms = d_transforms_SNJKC.sum(0).transpose(1, 2)
        return d_patches, d_transforms, None, None, None


class _Moments(torch.autograd.Function):
    """`Votes.moments`; the gradients are those of `capsrepro.models.votes`."""

    @staticmethod
    def forward(
        ctx: Any, weights_PNJQ: Tensor, handle_PNJQ: Tensor, handle_PJ2FQ: Tensor, factors: Any,
        layout: Layout,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from capsrepro.models import votes_kernels

        parts, _ = _split(layout.N, layout.P * layout.J, _LEAST_STEPS)
        shape = layout.P, layout.J, 16, layout.Q
        mass_SPJQ = weights_PNJQ.new_empty(parts, layout.P, layout.J, layout.Q)
        mean_SPJFQ, square_SPJFQ = (weights_PNJQ.new_empty(parts, *shape) for _ in range(2))
        sums = mass_SPJQ, mean_SPJFQ, square_SPJFQ
        _over_children("fit", layout, factors, [weights_PNJQ], sums)
        mass_PJQ = torch.empty_like(mass_SPJQ[0])
        mean_PJFQ, variance_PJFQ = (weights_PNJQ.new_empty(shape) for _ in range(2))
        votes_kernels.merge[layout.P * layout.J,](
            *sums, mass_PJQ, mean_PJFQ, variance_PJFQ,
            votes_module.MASS_EPSILON, layout.P * layout.J, parts, Q=layout.Q,
            num_warps=max(1, layout.Q // 32), enable_fp_fusion=True,
        )
        ctx.factors, ctx.layout = factors, layout
        ctx.save_for_backward(weights_PNJQ, mass_PJQ, mean_PJFQ, variance_PJFQ)
        return mass_PJQ, mean_PJFQ, variance_PJFQ

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_mass_PJQ: Tensor, d_mean_PJFQ: Tensor, d_variance_PJFQ: Tensor
    ) -> tuple[Tensor | None, ...]:
        weights_PNJQ, mass_PJQ, mean_PJFQ, variance_PJFQ = ctx.saved_tensors
        epsilon = votes_module.MASS_EPSILON
        divisor = (mass_PJQ + epsilon).unsqueeze(2)
        k_PJFQ = d_variance_PJFQ.contiguous() / divisor
        h_PJFQ = (d_mean_PJFQ - 2 * epsilon * mean_PJFQ * k_PJFQ).contiguous() / divisor
        rest_PJQ = d_mass_PJQ - (variance_PJFQ * k_PJFQ).sum(2)
        d_weights_PNJQ = torch.empty_like(weights_PNJQ)
        before = mean_PJFQ, k_PJFQ, h_PJFQ, rest_PJQ.contiguous()
        _over_children("slope_weights", ctx.layout, ctx.factors, before, [d_weights_PNJQ])
        # ∂V = w (h + 2 k (V − μ))
        lines_PJ2FQ = torch.cat([2 * k_PJFQ, h_PJFQ - 2 * k_PJFQ * mean_PJFQ], 2)
        return d_weights_PNJQ, weights_PNJQ, lines_PJ2FQ, None, None


class _Distances(torch.autograd.Function):
    """`Votes.distances`; the gradients are those of `capsrepro.models.votes`."""

    @staticmethod
    def forward(
        ctx: Any, centres_PJFQ: Tensor, precisions_PJFQ: Tensor, handle_PNJQ: Tensor,
        handle_PJ2FQ: Tensor, factors: Any, layout: Layout,
    ) -> Tensor:
        distances_PNJQ = centres_PJFQ.new_empty(layout.P, layout.N, layout.J, layout.Q)
        before = centres_PJFQ, precisions_PJFQ
        _over_children("measure", layout, factors, before, [distances_PNJQ])
        ctx.factors, ctx.layout = factors, layout
        ctx.save_for_backward(centres_PJFQ, precisions_PJFQ)
        return distances_PNJQ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_distances_PNJQ: Tensor) -> tuple[Tensor | None, ...]:
        centres_PJFQ, precisions_PJFQ = ctx.saved_tensors
        layout = ctx.layout
        parts, _ = _split(layout.N, layout.P * layout.J, _LEAST_STEPS)
        first_SPJFQ, second_SPJFQ = (
            centres_PJFQ.new_empty(parts, *centres_PJFQ.shape) for _ in range(2)
        )
        d_distances_PNJQ = d_distances_PNJQ.contiguous()
        before, after = (d_distances_PNJQ, centres_PJFQ), (first_SPJFQ, second_SPJFQ)
        _over_children("slope_parents", layout, ctx.factors, before, after)
        # ∂V = g 2 precision (V − centre)
        slopes_PJFQ = 2 * precisions_PJFQ
        lines_PJ2FQ = torch.cat([slopes_PJFQ, -slopes_PJFQ * centres_PJFQ], 2)
        d_centres_PJFQ = -slopes_PJFQ * first_SPJFQ.sum(0)
        return d_centres_PJFQ, second_SPJFQ.sum(0), d_distances_PNJQ, lines_PJ2FQ, None, None
