"""Triton kernels of `capsrepro.models.gpu.em_routing_cuda`, backwards; formulas are given there.

Tiles and shape suffixes: see `capsrepro.models.gpu.em_kernels`; U uses of the votes, E of them by
E-steps.
"""

import triton
import triton.language as tl

from capsrepro.models.gpu.em_arithmetic import (
    fill,
    load_pose,
    minus,
    off,
    parents_here,
    plus,
    plus_dot,
    plus_product,
    plus_scaled,
    product,
    share_of,
    store_pose,
    total_of,
)
from capsrepro.models.gpu.em_kernels import SIZES

_kernel = triton.jit(do_not_specialize=SIZES)


@triton.jit
def _by_offers(
    zeroth_SPJQ, first_SPJFQ, second_SPJFQ, precision, P, J, S, p, j, q, Q: tl.constexpr
):  # fmt: skip
    """Gradients of log a, pose and σ² by log a − ½ Σ ln 2πσ² − ½ Σ (V − pose)² / σ²."""
    d_log = tl.load(zeroth_SPJQ + (p * J + j) * Q + q)
    first = load_pose(first_SPJFQ + (p * J + j) * 16 * Q + q, Q)
    second = load_pose(second_SPJFQ + (p * J + j) * 16 * Q + q, Q)
    for s in range(1, S):
        part = (s * P + p) * J + j
        d_log += tl.load(zeroth_SPJQ + part * Q + q)
        first = plus(first, load_pose(first_SPJFQ + part * 16 * Q + q, Q))
        second = plus(second, load_pose(second_SPJFQ + part * 16 * Q + q, Q))
    bent = plus_product(fill(-0.5 * d_log), [0.5 * y for y in second], precision)
    return d_log, product(first, precision), product(bent, precision)


@triton.jit
def _store_moments(
    mean, variance, divisor, d_mass, d_mean, d_variance,
    epsilon, moments_PJ2FQ, rest_PJQ, lines_PJ2FQ, place, q, real, Q: tl.constexpr,
):  # fmt: skip
    """Write k, h and the rest of ∂w, and slope and level, from gradients of the moments."""
    k = [y / divisor for y in d_variance]
    h = plus_scaled(d_mean, product(mean, k), -2 * epsilon)
    h = [y / divisor for y in h]
    store_pose(moments_PJ2FQ + place * 32 * Q + q, Q, k, real)
    store_pose(moments_PJ2FQ + place * 32 * Q + 16 * Q + q, Q, h, real)
    tl.store(rest_PJQ + place * Q + q, -plus_dot(-d_mass, variance, k), mask=real)
    line, twice_k = lines_PJ2FQ + place * 32 * Q + q, [2 * y for y in k]
    store_pose(line, Q, twice_k, real)
    store_pose(line + 16 * Q, Q, plus_product(h, minus(twice_k), mean), real)


@triton.jit
def _by_blend(mean, pose, d_pose, d_whole, new_share):
    """Gradients of the mean and of the pose before, by pose and σ² = v + (mean − pose)²."""
    twice = product(plus(mean, minus(pose)), [2 * y for y in d_whole])
    d_pose = plus(d_pose, minus(twice))
    return plus_scaled(twice, d_pose, new_share), [y * (1 - new_share) for y in d_pose]


@_kernel
def slope_fit(
    fits_PJ4FQ, scalars_P2JQ, beta_u_J, d_poses_PJFQ, d_logs_PJQ, lost_GQ,
    zeroth_SPJQ, first_SPJFQ, second_SPJFQ, d_before_PJFQ,
    lines_PJ2FQ, offer_lines_PJ2FQ, moments_PJ2FQ, rest_PJQ, d_betas_2PJQ,
    epsilon, beta_a_factor, beta_u_factor, log_factor, mass_factor, temperature, new_share,
    SKEW, P, L, J, S,
    LAST: tl.constexpr, BLEND: tl.constexpr, MIXING: tl.constexpr,
    BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Gradient of `conclude`, and of what `offer` makes of it before its votes."""
    p = tl.program_id(1)
    j, q, real = parents_here(J, SKEW, BJ, Q)
    place = p * J + j
    start = fits_PJ4FQ + place * 64 * Q + q
    mean, pose = load_pose(start, Q), load_pose(start + 16 * Q, Q)
    whole = load_pose(start + 48 * Q, Q)
    precision = [1 / y for y in whole]
    if LAST:
        d_pose = load_pose(d_poses_PJFQ + place * 16 * Q + q, Q)
        d_log = tl.load(d_logs_PJQ + place * Q + q)
        d_whole = [y * 0.0 for y in mean]
    else:
        d_log, d_pose, d_whole = _by_offers(
            zeroth_SPJQ, first_SPJFQ, second_SPJFQ, precision, P, J, S, p, j, q, Q
        )
        line = offer_lines_PJ2FQ + place * 32 * Q + q
        store_pose(line, Q, minus(precision), real)
        store_pose(line + 16 * Q, Q, product(precision, pose), real)
        if BLEND:
            d_pose = plus(d_pose, load_pose(d_before_PJFQ + place * 16 * Q + q, Q))
    scalars = scalars_P2JQ + (p * 2 * J + j) * Q + q
    mass, log = tl.load(scalars), tl.load(scalars + J * Q)
    scaled = mass * mass_factor
    if MIXING:
        d_logit = d_log - tl.exp(log) * tl.load(lost_GQ + (p // L) * Q + q)
        d_mass = d_logit / (scaled + epsilon)
        d_logit = d_logit * 0.0
    else:
        d_logit = d_log * (1 - tl.exp(log)) * temperature
        cost = total_of([tl.log(y) for y in whole]) * log_factor
        cost += tl.load(beta_u_J + j + q * 0) * beta_u_factor
        d_mass = -d_logit * cost
        d_whole = plus_scaled(d_whole, precision, -d_logit * scaled * log_factor)
    tl.store(d_betas_2PJQ + place * Q + q, d_logit * beta_a_factor, mask=real)
    d_beta_u = -d_logit * scaled * beta_u_factor
    tl.store(d_betas_2PJQ + (P * J + place) * Q + q, d_beta_u, mask=real)
    d_mean = d_pose
    if BLEND:
        d_mean, d_before = _by_blend(mean, pose, d_pose, d_whole, new_share)
        store_pose(d_before_PJFQ + place * 16 * Q + q, Q, d_before, real)
    _store_moments(
        mean, load_pose(start + 32 * Q, Q), mass + epsilon, d_mass * mass_factor, d_mean, d_whole,
        epsilon, moments_PJ2FQ, rest_PJQ, lines_PJ2FQ, place, q, real, Q,
    )  # fmt: skip


@_kernel
def slope_weights(
    logs_PNJQ, over_HQ, shares_X, windows_LK, fits_PJ4FQ, moments_PJ2FQ, rest_PJQ,
    poses_HFQ, transforms_NJF, offsets_NF, slopes_PNJQ,
    SKEW, P, L, K, X, I, J, STEP,
    FIRST: tl.constexpr, HAS: tl.constexpr, BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """R ∂w = R (rest + Σ D (h + D k)) for a range of children."""
    p, s = tl.program_id(1), tl.program_id(2)
    j, q, real = parents_here(J, SKEW, BJ, Q)
    place = p * J + j
    mean = minus(load_pose(fits_PJ4FQ + place * 64 * Q + q, Q))
    curve = load_pose(moments_PJ2FQ + place * 32 * Q + q, Q)
    level = load_pose(moments_PJ2FQ + place * 32 * Q + 16 * Q + q, Q)
    rest = tl.load(rest_PJQ + place * Q + q)
    for k in range(s * STEP, tl.minimum(K, (s + 1) * STEP)):
        x = tl.load(windows_LK + (p % L) * K + k).to(tl.int32)
        for i in range(I):
            h, n = ((p // L) * X + x) * I + i, k * I + i
            pair = (p * K * I + n) * J + j
            d = off(poses_HFQ, transforms_NJF, offsets_NF, h, n, j, q, J, mean, HAS, Q)
            slope = plus_dot(rest, d, plus_product(level, d, curve))
            if FIRST:
                slope = slope * tl.load(shares_X + x)
            else:
                slope = slope * share_of(logs_PNJQ, over_HQ, h, pair, q, Q)
            tl.store(slopes_PNJQ + pair * Q + q, slope, mask=real)


@_kernel
def slope_children(
    slopes_PNJQ, slots_XM, d_here_HQ, d_active_HQ, L, K, X, I, J, M,
    ADD: tl.constexpr, BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Sum of R ∂w over every parent that sees a child, also added to ∂a."""
    h, q, j = tl.program_id(0), tl.arange(0, Q)[:, None], tl.arange(0, BJ)[None, :]
    g, x, i = h // (X * I), (h // I) % X, h % I
    summed = tl.zeros([Q, 1], d_here_HQ.dtype.element_ty)
    for m in range(M):
        slot = tl.load(slots_XM + x * M + m).to(tl.int32)
        seen = (slot + j * 0 + q * 0 < L * K) & (j < J)
        start = slopes_PNJQ + ((g * L * K + slot) * I + i) * J * Q
        summed += tl.sum(tl.load(start + j * Q + q, mask=seen, other=0.0), axis=1)[:, None]
    tl.store(d_here_HQ + h * Q + q, summed)
    if ADD:
        summed += tl.load(d_active_HQ + h * Q + q)
    tl.store(d_active_HQ + h * Q + q, summed)


@_kernel
def slope_offers(
    logs_PNJQ, over_HQ, active_HQ, d_here_HQ, windows_LK, fits_PJ4FQ,
    poses_HFQ, transforms_NJF, offsets_NF, slopes_PNJQ, zeroth_SPJQ, first_SPJFQ, second_SPJFQ,
    SKEW, P, L, K, X, I, J, STEP, HAS: tl.constexpr, BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Write g = ∂log in the place of R ∂w, and Σ g, Σ g D and Σ g D² over a range of children."""
    p, s = tl.program_id(1), tl.program_id(2)
    j, q, real = parents_here(J, SKEW, BJ, Q)
    centre = minus(load_pose(fits_PJ4FQ + (p * J + j) * 64 * Q + 16 * Q + q, Q))
    zeroth = tl.zeros([Q, BJ], active_HQ.dtype.element_ty)
    first, second = fill(zeroth), fill(zeroth)
    for k in range(s * STEP, tl.minimum(K, (s + 1) * STEP)):
        x = tl.load(windows_LK + (p % L) * K + k).to(tl.int32)
        for i in range(I):
            h, n = ((p // L) * X + x) * I + i, k * I + i
            pair = (p * K * I + n) * J + j
            slope = tl.load(slopes_PNJQ + pair * Q + q)
            share = share_of(logs_PNJQ, over_HQ, h, pair, q, Q)
            slope -= share * tl.load(d_here_HQ + h * Q + q)
            slope *= tl.load(active_HQ + h * Q + q)
            tl.store(slopes_PNJQ + pair * Q + q, slope, mask=real)
            d = off(poses_HFQ, transforms_NJF, offsets_NF, h, n, j, q, J, centre, HAS, Q)
            pulled = [y * slope for y in d]
            zeroth += slope
            first = plus(first, pulled)
            second = plus_product(second, pulled, d)
    place = (s * P + p) * J + j
    tl.store(zeroth_SPJQ + place * Q + q, zeroth, mask=real)
    store_pose(first_SPJFQ + place * 16 * Q + q, Q, first, real)
    store_pose(second_SPJFQ + place * 16 * Q + q, Q, second, real)
