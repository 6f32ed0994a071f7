"""Votes on the processor: made in registers by compiled loops, again at every use.

Shape suffixes: see `capsrepro.models.votes`; S is N filled up to whole vectors with children at 0
that weigh nothing.

`CompiledVotes` gives the sums of `FactoredVotes` to within rounding, gradients included, without
writing votes to memory at all (`capsrepro.models.cpu.vote_tiles`). T is cut into the same parts
however many threads there are, and their gradients are added in one order: results depend on
neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.cpu.threads import PARTS, call_in_parts
from capsrepro.models.votes import MASS_EPSILON, Moments


class CompiledVotes:
    """Votes that are never in memory.

    Args: see `capsrepro.models.votes.FactoredVotes`; only where `threads.can_compile` says so.
    """

    def __init__(
        self, patches_NTRK: Tensor, transforms_NKJC: Tensor, offsets_NRC: Tensor | None = None
    ) -> None:
        from capsrepro.models.cpu.vector_code import lanes_of

        self.children = len(patches_NTRK)
        self.missing = -self.children % lanes_of(patches_NTRK.dtype)
        patches_TRKS = self._filled(patches_NTRK.permute(1, 2, 3, 0))
        transforms_JKCS = self._filled(transforms_NKJC.permute(2, 1, 3, 0))
        offsets_RCS = None if offsets_NRC is None else self._filled(offsets_NRC.permute(1, 2, 0))
        self.factors = patches_TRKS, transforms_JKCS, offsets_RCS

    def moments(self, shares_TJN: Tensor, factors_TN: Tensor) -> Moments:
        """See `Votes`."""
        weights = self._filled(shares_TJN), self._filled(factors_TN)
        return Moments(*_Moments.apply(*weights, *self.factors))

    def distances(self, centres_TRJC: Tensor, precisions_TRJC: Tensor) -> Tensor:
        """See `Votes`."""
        parents = centres_TRJC.contiguous(), precisions_TRJC.contiguous()
        distances_TJS: Tensor = _Distances.apply(*parents, *self.factors)
        return distances_TJS[:, :, : self.children]

    def _filled(self, values: Tensor) -> Tensor:
        return (F.pad(values, (0, self.missing)) if self.missing else values).contiguous()


class _Moments(torch.autograd.Function):
    """`Votes.moments`; the gradients are those of `FactoredVotes`, told there."""

    @staticmethod
    def forward(
        ctx: Any,
        shares_TJS: Tensor,
        factors_TS: Tensor,
        patches_TRKS: Tensor,
        transforms_JKCS: Tensor,
        offsets_RCS: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        factors = patches_TRKS, transforms_JKCS, offsets_RCS
        mass_TJ = shares_TJS.new_empty(shares_TJS.shape[:2])
        mean_TRJC = shares_TJS.new_empty(_parents_shape(patches_TRKS, transforms_JKCS))
        variance_TRJC = torch.empty_like(mean_TRJC)
        kept = shares_TJS.new_empty(PARTS, _kept_numbers(patches_TRKS, transforms_JKCS))
        epsilon = shares_TJS.new_tensor(MASS_EPSILON)
        sums = [mass_TJ, mean_TRJC, variance_TRJC]
        _run("moments", kept, [*sums, shares_TJS, factors_TS, epsilon], factors)
        ctx.save_for_backward(shares_TJS, factors_TS, *factors, *sums)
        return mass_TJ, mean_TRJC, variance_TRJC

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_mass_TJ: Tensor, d_mean_TRJC: Tensor, d_variance_TRJC: Tensor
    ) -> tuple[Tensor | None, ...]:
        shares_TJS, factors_TS, *factors, mass_TJ, mean_TRJC, variance_TRJC = ctx.saved_tensors
        divisor = (mass_TJ + MASS_EPSILON)[:, None, :, None]
        k_TRJC = d_variance_TRJC / divisor
        h_TRJC = (d_mean_TRJC - 2 * MASS_EPSILON * mean_TRJC * k_TRJC) / divisor
        base_TJ = d_mass_TJ - (variance_TRJC * k_TRJC).sum((1, 3))
        d_shares_TJS, d_factors_TS = torch.empty_like(shares_TJS), torch.zeros_like(factors_TS)
        # Gradients may come with any strides, and what is made of them with the same.
        slopes = [x.contiguous() for x in (k_TRJC, h_TRJC, base_TJ)]
        sums = [d_shares_TJS, d_factors_TS, shares_TJS, factors_TS, mean_TRJC, *slopes]
        d_factors = _gradients("moments_gradient", sums, factors)
        return d_shares_TJS, d_factors_TS, *d_factors, None


class _Distances(torch.autograd.Function):
    """`Votes.distances`; the gradients are those of `FactoredVotes`, told there."""

    @staticmethod
    def forward(
        ctx: Any,
        centres_TRJC: Tensor,
        precisions_TRJC: Tensor,
        patches_TRKS: Tensor,
        transforms_JKCS: Tensor,
        offsets_RCS: Tensor | None,
    ) -> Tensor:
        factors = patches_TRKS, transforms_JKCS, offsets_RCS
        T, _, J, _ = centres_TRJC.shape
        distances_TJS = centres_TRJC.new_empty(T, J, patches_TRKS.shape[3])
        _run("distances", None, [distances_TJS, centres_TRJC, precisions_TRJC], factors)
        ctx.save_for_backward(centres_TRJC, precisions_TRJC, *factors)
        return distances_TJS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_distances_TJS: Tensor) -> tuple[Tensor | None, ...]:
        centres_TRJC, precisions_TRJC, *factors = ctx.saved_tensors
        slopes_TRJC = 2 * precisions_TRJC
        pulls_TRJC, squares_TRJC = (torch.empty_like(centres_TRJC) for _ in range(2))
        sums = [pulls_TRJC, squares_TRJC, d_distances_TJS.contiguous(), centres_TRJC, slopes_TRJC]
        d_factors = _gradients("distances_gradient", sums, factors)
        return -slopes_TRJC * pulls_TRJC, squares_TRJC, *d_factors, None


Factors = tuple[Tensor, Tensor, Tensor | None]


def _gradients(name: str, sums: list[Tensor], factors: Factors) -> tuple[Tensor, Tensor]:
    """Run a kernel that adds to the gradients of patches_TRKS and transforms_JKCS."""
    patches_TRKS, transforms_JKCS, _ = factors
    d_patches_TRKS = torch.zeros_like(patches_TRKS)
    d_transforms = transforms_JKCS.new_zeros(PARTS, *transforms_JKCS.shape)
    _run(name, d_transforms, [d_patches_TRKS, *sums], factors)
    return d_patches_TRKS, d_transforms.sum(0)


def _run(name: str, own: Tensor | None, arrays: list[Tensor], factors: Factors) -> None:
    """Run a kernel on all places.

    Args:
        name: In `votes_kernels.KERNELS`, which names the arrays.
        own: Memory of which each part of T has its own, shape (PARTS, …); the first array.
        arrays: The others in their order, contiguous.
        factors: Patches, transforms and offsets.
    """
    from capsrepro.models.cpu.vote_tiles import FACTORS, Pose
    from capsrepro.models.cpu.votes_kernels import KERNELS, kernel

    patches_TRKS, transforms_JKCS, offsets_RCS = factors
    T, R, K, S = patches_TRKS.shape
    J, _, C, _ = transforms_JKCS.shape
    pose, dtype = Pose(R, K, C, offsets_RCS is not None), patches_TRKS.dtype
    sizes = {"T": T, "R": R, "K": K, "S": S, "J": J, "C": C, "X": S * R * pose.width}
    all_own = [] if own is None else [own]
    names = *KERNELS[name][1], *FACTORS
    given = dict(zip(names, (*all_own, *arrays, *factors), strict=True))
    function = kernel(name, dtype, pose)
    call_in_parts(function, given, sizes, dtype, (J, S), T, own=len(all_own))


def _parents_shape(patches_TRKS: Tensor, transforms_JKCS: Tensor) -> tuple[int, ...]:
    T, R, _, _ = patches_TRKS.shape
    J, _, C, _ = transforms_JKCS.shape
    return T, R, J, C


def _kept_numbers(patches_TRKS: Tensor, transforms_JKCS: Tensor) -> int:
    """Votes of one tile for all children."""
    from capsrepro.models.cpu.vote_tiles import Pose

    _, R, K, S = patches_TRKS.shape
    return S * R * Pose(R, K, transforms_JKCS.shape[2], False).width
