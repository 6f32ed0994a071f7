"""Votes of matrix capsules and the two sums over them that EM routing needs.

Shape suffixes, here and in every file about matrix capsules:
    B  images of a batch            L  places of the parents' grid
    T  = B·L, images times places   N  children that one place of parents sees
    J  types of parents
    R, C  rows and columns of a pose: 4, 4 for a matrix; 1, 16 for a vector
    K  the inner index of pose times transform, as long as C

A vote is V_ij = M_i W_ij (Hinton et al. 2018, Section 3), with the place of the child added in the
class layer. `WrittenVotes` holds all votes, R·J·C·N numbers for each of T, and is the clear
reference. `FactoredVotes` makes them again, a slab at a time, whenever they are asked for: what
autograd keeps is no larger than the weights w_TJN, and a slab stays in the cache. On the processor
`CompiledVotes` (capsrepro.models.cpu.votes_cpu) takes its place, which never writes one to memory.

Rows of a pose stand before the parents and columns behind them, so that a slab of votes is turned
from products by child into sums over children as one matrix, which is the fastest way there is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MASS_EPSILON = 1e-7
"""Added to Σ w before dividing by it, as the authors' code does: a parent may get nothing."""

# Numbers of one slab of votes, 2 MiB: larger ones leave the cache, smaller ones cost calls
# (docs/performance.md).
_SLAB = 2**19


class Moments(NamedTuple):
    """What the M-step fits: mass_TJ = Σ_n w, and mean_TRJC and variance_TRJC of the votes."""

    mass: Tensor
    mean: Tensor
    variance: Tensor


class Votes(Protocol):
    """Votes of N children for J parents at each of T places."""

    def moments(self, shares_TJN: Tensor, factors_TN: Tensor) -> Moments:
        """Mean and variance over the children, the variance about that mean.

        Children weigh w_TJN = share · factor: what the parent gets of them, and their own.
        """

    def distances(self, centres_TRJC: Tensor, precisions_TRJC: Tensor) -> Tensor:
        """Σ_rc precision · (vote − centre)², shape (T, J, N)."""


class WrittenVotes:
    """All votes written out: the sums as they are printed, and autograd's gradients.

    Args: see `FactoredVotes`.
    """

    def __init__(
        self, patches_NTRK: Tensor, transforms_NKJC: Tensor, offsets_NRC: Tensor | None = None
    ) -> None:
        votes_TRJCN = torch.einsum("ntrk,nkjc->trjcn", patches_NTRK, transforms_NKJC)
        if offsets_NRC is not None:
            votes_TRJCN = votes_TRJCN + offsets_NRC.permute(1, 2, 0).unsqueeze(1)
        self.votes_TRJCN = votes_TRJCN

    def moments(self, shares_TJN: Tensor, factors_TN: Tensor) -> Moments:
        """See `Votes`."""
        weights_TJN = shares_TJN * factors_TN.unsqueeze(1)
        mass_TJ = weights_TJN.sum(2)
        shares = _beside_votes(weights_TJN / (mass_TJ + MASS_EPSILON).unsqueeze(2))
        mean_TRJC = (shares * self.votes_TRJCN).sum(4)
        squares_TRJCN = (self.votes_TRJCN - mean_TRJC.unsqueeze(4)).square()
        return Moments(mass_TJ, mean_TRJC, (shares * squares_TRJCN).sum(4))

    def distances(self, centres_TRJC: Tensor, precisions_TRJC: Tensor) -> Tensor:
        """See `Votes`."""
        squares_TRJCN = (self.votes_TRJCN - centres_TRJC.unsqueeze(4)).square()
        return (precisions_TRJC.unsqueeze(4) * squares_TRJCN).sum((1, 3))


class FactoredVotes:
    """Votes that are made again from poses and transforms at every use.

    Args:
        patches_NTRK: Poses of the children that each place sees.
        transforms_NKJC: Matrices W.
        offsets_NRC: Added to every vote; no gradient flows into them. None: nothing is added.
    """

    def __init__(
        self, patches_NTRK: Tensor, transforms_NKJC: Tensor, offsets_NRC: Tensor | None = None
    ) -> None:
        self.factors = patches_NTRK, transforms_NKJC, offsets_NRC

    def moments(self, shares_TJN: Tensor, factors_TN: Tensor) -> Moments:
        """See `Votes`."""
        weights_TJN = shares_TJN * factors_TN.unsqueeze(1)
        return Moments(*_Moments.apply(weights_TJN, *self.factors))

    def distances(self, centres_TRJC: Tensor, precisions_TRJC: Tensor) -> Tensor:
        """See `Votes`."""
        distances_TJN: Tensor = _Distances.apply(centres_TRJC, precisions_TRJC, *self.factors)
        return distances_TJN


def _votes(
    patches_NTRK: Tensor, transforms_NKJC: Tensor, offsets_NRC: Tensor | None = None
) -> Tensor:
    """V = M W + offset, shape (T, R, J, C, N), in new memory."""
    N, T, R, K = patches_NTRK.shape
    _, _, J, C = transforms_NKJC.shape
    products = torch.bmm(patches_NTRK.reshape(N, T * R, K), transforms_NKJC.reshape(N, K, J * C))
    votes_TRJCN = products.view(N, -1).t().contiguous().view(T, R, J, C, N)
    if offsets_NRC is not None:
        votes_TRJCN += offsets_NRC.permute(1, 2, 0).unsqueeze(1)
    return votes_TRJCN


class _Moments(torch.autograd.Function):
    """`Votes.moments` by slabs.

    With m = Σ w + ε, mean μ and variance v are Σ w V / m and Σ w (V − μ)² / m. From their gradients
    g_μ and g_v, and with k = g_v / m and h = (g_μ − 2 ε μ k) / m,
        ∂w = g_mass + Σ_rc [ D (h + D k) − v k ],    ∂V = w (h + 2 D k),    D = V − μ.
    The term with ε is what is left of ∂v/∂μ, which is 0 for an exact mean.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights_TJN: Tensor,
        patches_NTRK: Tensor,
        transforms_NKJC: Tensor,
        offsets_NRC: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mass_TJ = weights_TJN.sum(2)
        divisor_TJ1 = (mass_TJ + MASS_EPSILON).unsqueeze(2)
        mean_TRJC = weights_TJN.new_empty(_parents_shape(patches_NTRK, transforms_NKJC))
        variance_TRJC = torch.empty_like(mean_TRJC)
        for slab in _slabs(patches_NTRK, transforms_NKJC):
            shares = _beside_votes(weights_TJN[slab] / divisor_TJ1[slab])
            votes_TRJCN = _votes(patches_NTRK[:, slab], transforms_NKJC, offsets_NRC)
            torch.sum(votes_TRJCN * shares, 4, out=mean_TRJC[slab])
            squares_TRJCN = votes_TRJCN.sub_(mean_TRJC[slab].unsqueeze(4)).square_()
            torch.sum(squares_TRJCN.mul_(shares), 4, out=variance_TRJC[slab])
        ctx.save_for_backward(
            weights_TJN, patches_NTRK, transforms_NKJC, offsets_NRC, mean_TRJC, variance_TRJC
        )
        return mass_TJ, mean_TRJC, variance_TRJC

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_mass_TJ: Tensor, d_mean_TRJC: Tensor, d_variance_TRJC: Tensor
    ) -> tuple[Tensor | None, ...]:
        weights_TJN, patches_NTRK, transforms_NKJC, offsets_NRC, mean_TRJC, variance_TRJC = (
            ctx.saved_tensors
        )
        divisor = (weights_TJN.sum(2) + MASS_EPSILON)[:, None, :, None]
        k_TRJC = d_variance_TRJC / divisor
        h_TRJC = (d_mean_TRJC - 2 * MASS_EPSILON * mean_TRJC * k_TRJC) / divisor
        d_weights_TJN = torch.empty_like(weights_TJN)
        d_factors = _Gradients(patches_NTRK, transforms_NKJC)
        for slab in _slabs(patches_NTRK, transforms_NKJC):
            off_TRJCN = _votes(patches_NTRK[:, slab], transforms_NKJC, offsets_NRC)
            off_TRJCN -= mean_TRJC[slab].unsqueeze(4)
            bent_TRJCN = off_TRJCN * k_TRJC[slab].unsqueeze(4)
            slope_TRJCN = bent_TRJCN + h_TRJC[slab].unsqueeze(4)
            torch.sum(off_TRJCN.mul_(slope_TRJCN).sum(3), 1, out=d_weights_TJN[slab])
            d_votes = slope_TRJCN.add_(bent_TRJCN).mul_(_beside_votes(weights_TJN[slab]))
            d_factors.add(slab, d_votes)
        d_weights_TJN += (d_mass_TJ - (variance_TRJC * k_TRJC).sum((1, 3))).unsqueeze(2)
        return d_weights_TJN, d_factors.patches_NTRK, d_factors.transforms_NKJC, None


class _Distances(torch.autograd.Function):
    """`Votes.distances` by slabs.

    With D = V − centre and the gradient g of the distances,
        ∂V = 2 precision D g,    ∂centre = −Σ_n ∂V,    ∂precision = Σ_n g D².
    """

    @staticmethod
    def forward(
        ctx: Any,
        centres_TRJC: Tensor,
        precisions_TRJC: Tensor,
        patches_NTRK: Tensor,
        transforms_NKJC: Tensor,
        offsets_NRC: Tensor | None,
    ) -> Tensor:
        (T, _, J, _), N = centres_TRJC.shape, len(patches_NTRK)
        distances_TJN = centres_TRJC.new_empty(T, J, N)
        for slab in _slabs(patches_NTRK, transforms_NKJC):
            off_TRJCN = _votes(patches_NTRK[:, slab], transforms_NKJC, offsets_NRC)
            squares_TRJCN = off_TRJCN.sub_(centres_TRJC[slab].unsqueeze(4)).square_()
            squares_TRJCN *= precisions_TRJC[slab].unsqueeze(4)
            torch.sum(squares_TRJCN.sum(3), 1, out=distances_TJN[slab])
        ctx.save_for_backward(
            centres_TRJC, precisions_TRJC, patches_NTRK, transforms_NKJC, offsets_NRC
        )
        return distances_TJN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_distances_TJN: Tensor) -> tuple[Tensor | None, ...]:
        centres_TRJC, precisions_TRJC, patches_NTRK, transforms_NKJC, offsets_NRC = (
            ctx.saved_tensors
        )
        d_centres_TRJC = torch.empty_like(centres_TRJC)
        d_precisions_TRJC = torch.empty_like(precisions_TRJC)
        d_factors = _Gradients(patches_NTRK, transforms_NKJC)
        for slab in _slabs(patches_NTRK, transforms_NKJC):
            off_TRJCN = _votes(patches_NTRK[:, slab], transforms_NKJC, offsets_NRC)
            off_TRJCN -= centres_TRJC[slab].unsqueeze(4)
            pulled_TRJCN = off_TRJCN * _beside_votes(d_distances_TJN[slab])
            torch.sum(off_TRJCN.mul_(pulled_TRJCN), 4, out=d_precisions_TRJC[slab])
            d_votes = pulled_TRJCN.mul_(2 * precisions_TRJC[slab].unsqueeze(4))
            torch.sum(d_votes, 4, out=d_centres_TRJC[slab])
            d_factors.add(slab, d_votes)
        return (
            d_centres_TRJC.neg_(),
            d_precisions_TRJC,
            d_factors.patches_NTRK,
            d_factors.transforms_NKJC,
            None,
        )


class _Gradients:
    """Gradients of patches and transforms, gathered from those of the votes slab by slab."""

    def __init__(self, patches_NTRK: Tensor, transforms_NKJC: Tensor) -> None:
        self.factors = patches_NTRK, transforms_NKJC
        self.patches_NTRK = torch.empty_like(patches_NTRK)
        self.transforms_NKJC = torch.zeros_like(transforms_NKJC)

    def add(self, slab: slice, d_votes_TRJCN: Tensor) -> None:
        patches_NTRK, transforms_NKJC = self.factors
        N, _, R, K = patches_NTRK.shape
        d_products = d_votes_TRJCN.view(-1, N).t().contiguous().view(N, len(d_votes_TRJCN) * R, -1)
        left = patches_NTRK[:, slab].reshape(N, -1, K)
        self.transforms_NKJC += torch.bmm(left.transpose(1, 2), d_products).view_as(transforms_NKJC)
        right = transforms_NKJC.reshape(N, K, -1)
        d_patches = torch.bmm(d_products, right.transpose(1, 2))
        self.patches_NTRK[:, slab] = d_patches.view(N, -1, R, K)


def _beside_votes(values_TJN: Tensor) -> Tensor:
    """Ready to be multiplied with votes_TRJCN."""
    return values_TJN[:, None, :, None, :]


def _parents_shape(patches_NTRK: Tensor, transforms_NKJC: Tensor) -> tuple[int, ...]:
    return (*patches_NTRK.shape[1:3], *transforms_NKJC.shape[2:])


def _slabs(patches_NTRK: Tensor, transforms_NKJC: Tensor) -> list[slice]:
    """Ranges of T whose votes are about `_SLAB` numbers each."""
    N, T, R, _ = patches_NTRK.shape
    step = max(1, _SLAB // (N * R * transforms_NKJC[0, 0].numel()))
    return [slice(start, start + step) for start in range(0, T, step)]
