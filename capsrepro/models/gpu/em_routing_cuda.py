"""EM routing on a GPU: votes live in registers, and one memory layout serves all kernels.

All of a layer's routing is one function with one derivative. Each M-step and each E-step passes
over all votes once, and so do their gradients; what is as large as R_TJN is written once in each
E-step. The weights of a child are what its poses are: one for each child, not for each place that
sees it, so that the kernels look children up and nothing is copied into patches.

Gradients, with R the assignments, w = R a, D = V − centre, and those of an M-step's moments as in
`capsrepro.models.votes`:
    of the weights        q = R ∂w,   ∂a = Σ q
    of an E-step's logs   g = a (q − R Σ q),   both sums over every parent that sees the child
    of its parents        ∂pose = Σ g D / σ²,   ∂σ² = ½ Σ g (D² / σ² − 1) / σ²,   ∂ log a = Σ g
    of the votes          Σ_u w_u (slope_u V + level_u) over all uses u
where slope and level are 2k and h − 2kμ for an M-step, w_u its weights, and −1/σ² and pose/σ² for
an E-step, w_u = g.

Sums over children, places and images are taken in a fixed order: the same bits each time. Nothing
waits for the device and grids follow from shapes alone, so that a CUDA graph can capture it all.

Shape suffixes: see `em_kernels`, for the order in memory in which they work, and
`capsrepro.models.votes`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.em_routing import EMRouting
from capsrepro.models.gpu.em_launches import TILES, Launcher, Tiles
from capsrepro.models.receptive_fields import ReceptiveFields


def supported(poses_BXIRC: Tensor, parents: int, fields: ReceptiveFields, how: EMRouting) -> bool:
    """Whether the kernels take these: 4×4 poses in float32 on a GPU, and Triton is installed.

    Nor may any tensor have as many numbers as an index of 32 bits can count.
    """
    B, _, types, *pose = poses_BXIRC.shape
    L, K = fields.windows.shape
    places = -(-B // TILES.images) * TILES.images * L
    pairs = how.iterations * K * types * parents
    most = places * max(pairs, 64 * how.iterations * parents, 16 * K * parents, 16 * K * types)
    return (
        poses_BXIRC.is_cuda
        and poses_BXIRC.dtype == torch.float32
        and pose == [4, 4]
        and most < 2**31
        and importlib.util.find_spec("triton") is not None
    )


def fused_em_routing(
    poses_BXIRC: Tensor,
    activations_BXI: Tensor,
    transforms_KIKJC: Tensor,
    offsets_NRC: Tensor | None,
    betas: tuple[Tensor, Tensor],
    fields: ReceptiveFields,
    how: EMRouting,
    tiles: Tiles = TILES,
) -> tuple[Tensor, Tensor]:
    """The last parents of `em_routing`, for children that are `supported`.

    Args:
        poses_BXIRC: Of the children, 4×4.
        activations_BXI: Of the children, in [0, 1].
        transforms_KIKJC: Of each place of a kernel and type of child.
        offsets_NRC: Added to every vote; no gradient flows into them. None: nothing is added.
        betas: β_a and β_u, one for each type of parent.
        fields: Which places of parents see which children.
        how: See `EMRouting`.
        tiles: See `Tiles`.

    Returns:
        Poses (B, L, J, R, C) and activations (B, L, J). They have one derivative, not a second.
    """
    B, L = len(poses_BXIRC), len(fields.windows)
    transforms_NJF = transforms_KIKJC.transpose(2, 3).flatten(3).flatten(0, 1).contiguous()
    poses_PJFQ, activations_PJQ = FusedRouting.apply(
        _blocked(poses_BXIRC.flatten(3), tiles.images),
        _blocked(activations_BXI, tiles.images),
        transforms_NJF,
        None if offsets_NRC is None else offsets_NRC.flatten(1).contiguous(),
        *(beta.contiguous() for beta in betas),
        fields,
        how,
        tiles,
    )
    poses_BLJF, activations_BLJ = (
        values.unflatten(0, (-1, L)).movedim(-1, 1).flatten(0, 1)[:B]
        for values in (poses_PJFQ, activations_PJQ)
    )
    return poses_BLJF.unflatten(3, (4, 4)), activations_BLJ


def _blocked(values_BY: Tensor, images: int) -> Tensor:
    """Shape (G, …, Q), filled up with images of zeros."""
    missing = -len(values_BY) % images
    if missing:
        values_BY = F.pad(values_BY, (0, 0) * (values_BY.ndim - 1) + (0, missing))
    values_GQY = values_BY.reshape(-1, images, *values_BY.shape[1:])
    return values_GQY.movedim(1, -1).contiguous()


class FusedRouting(torch.autograd.Function):
    """The kernels and their gradient; for tensors on a GPU, or for Triton's interpreter."""

    @staticmethod
    def forward(
        ctx: Any,
        poses_GXIFQ: Tensor,
        active_GXIQ: Tensor,
        transforms_NJF: Tensor,
        offsets_NF: Tensor | None,
        beta_a_J: Tensor,
        beta_u_J: Tensor,
        fields: ReceptiveFields,
        how: EMRouting,
        tiles: Tiles,
    ) -> tuple[Tensor, Tensor]:
        """Poses (P, J, F, Q) and activations (P, J, Q) of the parents."""
        factors, betas = (poses_GXIFQ, transforms_NJF, offsets_NF), (beta_a_J, beta_u_J)
        launch = Launcher(factors, active_GXIQ, betas, fields, how, tiles)
        P, N, J, E = launch.P, launch.N, launch.J, how.iterations - 1
        logs_EPNJQ, over_EHQ = launch.new(E, P, N, J), launch.new(E, launch.H)
        fits, scalars = launch.new(E + 1, P, J, 64), launch.new(E + 1, P, 2, J)
        launch.m_step(0, None, None, fits, scalars)
        for e in range(E):
            launch.e_step(fits[e], scalars[e], logs_EPNJQ[e], over_EHQ[e])
            launch.m_step(e + 1, logs_EPNJQ[e], over_EHQ[e], fits, scalars)
        ctx.save_for_backward(*factors, active_GXIQ, *betas, logs_EPNJQ, over_EHQ, fits, scalars)
        ctx.settings = fields, how, tiles
        return fits[E, :, :, 16:32].contiguous(), scalars[E, :, 1].exp()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_poses_PJFQ: Tensor, d_activations_PJQ: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of poses, activations, transforms and betas."""
        poses, transforms, offsets, active, *betas, logs, over, fits, scalars = ctx.saved_tensors
        fields, how, tiles = ctx.settings
        launch = Launcher((poses, transforms, offsets), active, tuple(betas), fields, how, tiles)
        P, J, E = launch.P, launch.J, len(logs)
        slopes, lines = torch.empty_like(logs), launch.new(2 * E + 1, P, J, 32)
        k_and_h, rest, d_before = launch.new(P, J, 32), launch.new(P, J), launch.new(P, J, 16)
        d_betas, d_here = launch.new(E + 1, 2, P, J), launch.new(launch.H)
        d_active = torch.empty_like(active)
        above = d_poses_PJFQ.contiguous(), d_activations_PJQ.contiguous() * scalars[E, :, 1].exp()
        sums = None
        for i in range(E, -1, -1):
            # The E-step after an M-step; after the last there is none.
            after = lines[E + 1 + i] if i < E else lines[0]
            written = lines[i], after, k_and_h, rest, d_betas[i]
            launch.m_step_slopes(i, above, sums, (fits[i], scalars[i], d_before), written)
            parents = fits[i], k_and_h, rest
            # Each E-step has its slopes; those of the first weights are summed and forgotten.
            slopes_PNJQ = slopes[i - 1] if i else launch.new(P, launch.N, J)
            log, whole = (logs[i - 1], over[i - 1]) if i else (None, None)
            launch.weights_slopes(log, whole, parents, slopes_PNJQ, d_here, d_active, last=i == E)
            if i:
                sums = launch.e_step_slopes(
                    logs[i - 1], over[i - 1], d_here, fits[i - 1], slopes_PNJQ
                )
        uses, wanted = (over, logs, slopes, lines), ctx.needs_input_grad
        d_beta_a_J, d_beta_u_J = d_betas.sum((0, 2, 4))
        return (
            launch.poses_slopes(*uses) if wanted[0] else None,
            d_active,
            launch.transforms_slopes(*uses) if wanted[2] else None,
            None,
            d_beta_a_J,
            d_beta_u_J,
            *[None] * 3,
        )
