"""Triton kernels of `em_routing_cuda`: from gradients of votes to their factors.

Gradients of the votes are made in registers as
    ∂V = Σ_u w_u (slope_u V + level_u)
over all uses u that were made of them: first the M-steps, u = 0, 1, …, then the E-steps.

Tiles and shape suffixes: see `em_kernels`; here a tile has BN children that share
what is loaded for a parent, which is most.
"""

import triton
import triton.language as tl

from capsrepro.models.gpu.em_arithmetic import (
    fill,
    load_pose,
    plus,
    plus_product,
    plus_scaled,
    plus_times_transposed,
    plus_transposed_times,
    store_pose,
    votes_of,
)
from capsrepro.models.gpu.em_kernels import SIZES

_kernel = triton.jit(do_not_specialize=SIZES)


@triton.jit
def _children_here(program, N, BN: tl.constexpr):
    """Children of this program's tile, and which of them are real."""
    n = (program * BN + tl.arange(0, BN))[None, :]
    return tl.minimum(n, N - 1), n < N


@triton.jit
def _pull(
    v, weight, active, over_EHQ, logs_EPNJQ, slopes_EPNJQ, lines_UPJ2FQ,
    h, pair, parent, q, H, PN, PJ, J, E: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """∂V; `weight` is that of the first M-step."""
    line = lines_UPJ2FQ + parent * 32 * Q + q
    slope = plus_scaled(fill(v[0] * 0.0), load_pose(line, Q), weight)
    level = plus_scaled(fill(v[0] * 0.0), load_pose(line + 16 * Q, Q), weight)
    for e in tl.static_range(E):
        log = tl.load(logs_EPNJQ + (e * PN * J + pair) * Q + q)
        weight = tl.exp(log - tl.load(over_EHQ + (e * H + h) * Q + q)) * active
        line = lines_UPJ2FQ + ((e + 1) * PJ + parent) * 32 * Q + q
        slope = plus_scaled(slope, load_pose(line, Q), weight)
        level = plus_scaled(level, load_pose(line + 16 * Q, Q), weight)
        weight = tl.load(slopes_EPNJQ + (e * PN * J + pair) * Q + q)
        line = lines_UPJ2FQ + ((E + 1 + e) * PJ + parent) * 32 * Q + q
        slope = plus_scaled(slope, load_pose(line, Q), weight)
        level = plus_scaled(level, load_pose(line + 16 * Q, Q), weight)
    return plus_product(level, slope, v)


@_kernel
def pull_poses(
    active_HQ, over_EHQ, logs_EPNJQ, slopes_EPNJQ, lines_UPJ2FQ, shares_X, windows_LK,
    poses_HFQ, transforms_NJF, offsets_NF, d_patches_PNFQ,
    SKEW, P, L, K, X, I, J, BLOCKS,
    E: tl.constexpr, HAS: tl.constexpr, BN: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradient of the poses as each place sees them: Σ_j ∂V Wᵀ."""
    p, N, q = tl.program_id(1), K * I, SKEW + tl.arange(0, Q)[:, None]
    n, real = _children_here(tl.program_id(0), N, BN)
    x = tl.load(windows_LK + (p % L) * K + n // I + q * 0).to(tl.int32)
    h = ((p // L) * X + x) * I + n % I
    m = load_pose(poses_HFQ + h * 16 * Q + q, Q)
    active = tl.load(active_HQ + h * Q + q)
    weight = active * tl.load(shares_X + x)
    zero = tl.zeros([Q, BN], poses_HFQ.dtype.element_ty)
    start, d_poses = fill(zero), fill(zero)
    if HAS:
        start = plus(start, load_pose(offsets_NF + n * 16 + q * 0, 1))
    for j in range(J):
        w = load_pose(transforms_NJF + (n * J + j) * 16 + q * 0, 1)
        v = votes_of(m, w, start)
        d_votes = _pull(
            v, weight, active, over_EHQ, logs_EPNJQ, slopes_EPNJQ, lines_UPJ2FQ,
            h, (p * N + n) * J + j, p * J + j, q, BLOCKS * X * I, P * N, P * J, J, E, Q,
        )  # fmt: skip
        d_poses = plus_times_transposed(d_poses, d_votes, w)
    store_pose(d_patches_PNFQ + (p * N + n) * 16 * Q + q, Q, d_poses, real & (q >= 0))


@_kernel
def gather_poses(
    d_patches_PNFQ, slots_XM, d_poses_HFQ, L, K, X, I, M, BF: tl.constexpr, Q: tl.constexpr
):
    """Gradient of each child's pose: the sum over the places that see it."""
    h, f, q = tl.program_id(0), tl.arange(0, BF)[:, None], tl.arange(0, Q)[None, :]
    g, x, i = h // (X * I), (h // I) % X, h % I
    summed = tl.zeros([BF, Q], d_poses_HFQ.dtype.element_ty)
    for m in range(M):
        slot = tl.load(slots_XM + x * M + m).to(tl.int32)
        start = d_patches_PNFQ + ((g * L * K + slot) * I + i) * BF * Q
        summed += tl.load(start + f * Q + q, mask=slot + f * 0 + q * 0 < L * K, other=0.0)
    tl.store(d_poses_HFQ + (h * BF + f) * Q + q, summed)


@_kernel
def pull_transforms(
    active_HQ, over_EHQ, logs_EPNJQ, slopes_EPNJQ, lines_UPJ2FQ, shares_X, windows_LK,
    poses_HFQ, transforms_NJF, offsets_NF, d_transforms_SNJF,
    SKEW, P, L, K, X, I, J, STEP, BLOCKS,
    E: tl.constexpr, HAS: tl.constexpr, BN: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradient of the transforms: Σ Mᵀ ∂V over the images and a range of places."""
    j, s, N, q = tl.program_id(0), tl.program_id(2), K * I, SKEW + tl.arange(0, Q)[:, None]
    n, real = _children_here(tl.program_id(1), N, BN)
    w = load_pose(transforms_NJF + (n * J + j) * 16 + q * 0, 1)
    zero = tl.zeros([Q, BN], poses_HFQ.dtype.element_ty)
    start, sums = fill(zero), fill(zero)
    if HAS:
        start = plus(start, load_pose(offsets_NF + n * 16 + q * 0, 1))
    for p in range(s * STEP, tl.minimum(P, (s + 1) * STEP)):
        x = tl.load(windows_LK + (p % L) * K + n // I + q * 0).to(tl.int32)
        h = ((p // L) * X + x) * I + n % I
        m = load_pose(poses_HFQ + h * 16 * Q + q, Q)
        active = tl.load(active_HQ + h * Q + q)
        weight = active * tl.load(shares_X + x)
        d_votes = _pull(
            votes_of(m, w, start), weight, active, over_EHQ, logs_EPNJQ, slopes_EPNJQ,
            lines_UPJ2FQ,
            h, (p * N + n) * J + j, p * J + j, q, BLOCKS * X * I, P * N, P * J, J, E, Q,
        )  # fmt: skip
        sums = plus_transposed_times(sums, m, d_votes)
    d_transforms = [tl.sum(y, axis=0)[None, :] for y in sums]
    store_pose(d_transforms_SNJF + ((s * N + n) * J + j) * 16, 1, d_transforms, real)
