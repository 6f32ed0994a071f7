"""Triton kernels of `capsrepro.models.gpu.em_routing_cuda`, forwards.

A program takes Q images, one a thread, and BJ parents at one place. All else (child, component) is
an index of a loop: nothing is summed across threads. Warps of a program work on different parents
of the same images, so that a child's pose comes from far away once for BJ parents, which is what
the time of these kernels depends on. Shape suffixes here are the order in memory:
    G, Q  blocks of images and the images of one      F  components, rows of the pose by columns
    P     = G·L, blocks of images times places        H  = G·X·I, blocks times children
    N     = K·I, children that a place sees           S  ranges of the kernel's places K
The others are those of `capsrepro.models.votes` and `capsrepro.models.receptive_fields`.

SKEW is 0, which the compiler is not to know: it would let a thread take neighbouring images, not
several parents of one image.
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
    share_of,
    store_pose,
    total_of,
)

SIZES = ("SKEW", "P", "L", "K", "X", "I", "J", "N", "M", "S", "STEP", "ROWS", "BLOCKS")
"""Arguments that kernels are not compiled anew for."""

_kernel = triton.jit(do_not_specialize=SIZES)

TWO_PI = tl.constexpr(6.283185307179586)


@_kernel
def fit(
    logs_PNJQ, over_HQ, active_HQ, shares_X, windows_LK, poses_HFQ, transforms_NJF, offsets_NF,
    mass_SPJQ, mean_SPJFQ, square_SPJFQ,
    SKEW, P, L, K, X, I, J, STEP,
    FIRST: tl.constexpr, HAS: tl.constexpr, BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Mass, mean and Σ w (V − mean)² over a range of children, by Welford's running update."""
    p, s = tl.program_id(1), tl.program_id(2)
    j, q, real = parents_here(J, SKEW, BJ, Q)
    mass = tl.zeros([Q, BJ], active_HQ.dtype.element_ty)
    mean, square = fill(mass), fill(mass)
    for k in range(s * STEP, tl.minimum(K, (s + 1) * STEP)):
        x = tl.load(windows_LK + (p % L) * K + k).to(tl.int32)
        for i in range(I):
            h, n = ((p // L) * X + x) * I + i, k * I + i
            weight = tl.load(active_HQ + h * Q + q + j * 0)
            if FIRST:
                weight = weight * tl.load(shares_X + x)
            else:
                weight = weight * share_of(logs_PNJQ, over_HQ, h, (p * K * I + n) * J + j, q, Q)
            d = off(poses_HFQ, transforms_NJF, offsets_NF, h, n, j, q, J, minus(mean), HAS, Q)
            mass += weight
            share = tl.where(weight > 0, weight / tl.where(mass > 0, mass, 1.0), 0.0)
            mean = plus_scaled(mean, d, share)
            square = plus_scaled(square, [y * y for y in d], weight - weight * share)
    place = (s * P + p) * J + j
    tl.store(mass_SPJQ + place * Q + q, mass, mask=real)
    store_pose(mean_SPJFQ + place * 16 * Q + q, Q, mean, real)
    store_pose(square_SPJFQ + place * 16 * Q + q, Q, square, real)


@_kernel
def conclude(
    mass_SPJQ, mean_SPJFQ, square_SPJFQ, before_PJ4FQ, beta_a_J, beta_u_J, fits_PJ4FQ, scalars_P2JQ,
    epsilon, beta_a_factor, beta_u_factor, log_factor, mass_factor, temperature, floor, new_share,
    SKEW, P, J, S,
    BLEND: tl.constexpr, OLD: tl.constexpr, MIXING: tl.constexpr,
    BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """The M-step: moments over all ranges of children, and what parents make of them.

    Writes mean, pose, variance about the mean and σ² to `fits`, mass and log a to `scalars`; see
    `em_routing_cuda.Coefficients`. A mixing proportion is short of its divisor.
    """
    p = tl.program_id(1)
    j, q, real = parents_here(J, SKEW, BJ, Q)
    place = p * J + j
    mass = tl.load(mass_SPJQ + place * Q + q)
    mean = load_pose(mean_SPJFQ + place * 16 * Q + q, Q)
    square = load_pose(square_SPJFQ + place * 16 * Q + q, Q)
    for s in range(1, S):
        part = (s * P + p) * J + j
        more = tl.load(mass_SPJQ + part * Q + q)
        d = plus(load_pose(mean_SPJFQ + part * 16 * Q + q, Q), minus(mean))
        total = mass + more
        share = tl.where(more > 0, more / tl.where(total > 0, total, 1.0), 0.0)
        mean = plus_scaled(mean, d, share)
        square = plus(square, load_pose(square_SPJFQ + part * 16 * Q + q, Q))
        square = plus_scaled(square, [y * y for y in d], mass * share)
        mass = total
    divisor = mass + epsilon
    # The mean that is kept is short of the mean of the votes by a share of ε.
    short = [y * (epsilon / divisor) for y in mean]
    square = plus_scaled(square, [y * y for y in short], mass)
    mean = [y * (mass / divisor) for y in mean]
    variance = [y / divisor for y in square]
    pose, whole = mean, [y + floor for y in variance]
    if BLEND:
        pose = [y * new_share for y in mean]
        if OLD:
            old = load_pose(before_PJ4FQ + place * 64 * Q + 16 * Q + q, Q)
            pose = plus_scaled(pose, old, 1 - new_share)
        gap = plus(mean, minus(pose))
        whole = plus_product(whole, gap, gap)
    start = fits_PJ4FQ + place * 64 * Q + q
    store_pose(start, Q, mean, real)
    store_pose(start + 16 * Q, Q, pose, real)
    store_pose(start + 32 * Q, Q, variance, real)
    store_pose(start + 48 * Q, Q, whole, real)
    scaled = mass * mass_factor
    if MIXING:
        log = tl.log(scaled + epsilon)
    else:
        logs = total_of([tl.log(y) for y in whole])
        cost = tl.load(beta_u_J + j + q * 0) * beta_u_factor + logs * log_factor
        logit = temperature * (tl.load(beta_a_J + j + q * 0) * beta_a_factor - scaled * cost)
        log = tl.minimum(logit, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logit)))
    scalars = scalars_P2JQ + (p * 2 * J + j) * Q + q
    tl.store(scalars, mass, mask=real)
    tl.store(scalars + J * Q, log, mask=real)


@_kernel
def offer(
    fits_PJ4FQ, scalars_P2JQ, windows_LK, poses_HFQ, transforms_NJF, offsets_NF, logs_PNJQ,
    SKEW, P, L, K, X, I, J, STEP, HAS: tl.constexpr, BJ: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Logarithm of a_j p_j for a range of children."""
    p, s = tl.program_id(1), tl.program_id(2)
    j, q, real = parents_here(J, SKEW, BJ, Q)
    start = fits_PJ4FQ + (p * J + j) * 64 * Q + q
    centre = minus(load_pose(start + 16 * Q, Q))
    variance = load_pose(start + 48 * Q, Q)
    constant = tl.load(scalars_P2JQ + (p * 2 * J + J + j) * Q + q)
    constant -= 0.5 * total_of([tl.log(y * TWO_PI) for y in variance])
    precision = [-0.5 / y for y in variance]
    for k in range(s * STEP, tl.minimum(K, (s + 1) * STEP)):
        x = tl.load(windows_LK + (p % L) * K + k).to(tl.int32)
        for i in range(I):
            h, n = ((p // L) * X + x) * I + i, k * I + i
            d = off(poses_HFQ, transforms_NJF, offsets_NF, h, n, j, q, J, centre, HAS, Q)
            log = plus_dot(constant, [y * y for y in d], precision)
            tl.store(logs_PNJQ + ((p * K * I + n) * J + j) * Q + q, log, mask=real)


@_kernel
def compete(
    logs_PNJQ, slots_XM, over_HQ, L, K, X, I, J, M, BJ: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """The log Σ exp over every parent that sees a child; 0 for a child that nobody sees."""
    h, q, j = tl.program_id(0), tl.arange(0, Q)[:, None], tl.arange(0, BJ)[None, :]
    g, x, i = h // (X * I), (h // I) % X, h % I
    most = tl.full([Q, 1], -1e30, over_HQ.dtype.element_ty)
    summed = most * 0.0
    for m in range(M):
        slot = tl.load(slots_XM + x * M + m).to(tl.int32)
        seen = (slot + j * 0 + q * 0 < L * K) & (j < J)
        start = logs_PNJQ + ((g * L * K + slot) * I + i) * J * Q
        log = tl.load(start + j * Q + q, mask=seen, other=-1e30)
        higher = tl.maximum(most, tl.max(log, axis=1)[:, None])
        here = tl.where(seen, tl.exp(log - higher), 0.0)
        summed = summed * tl.exp(most - higher) + tl.sum(here, axis=1)[:, None]
        most = higher
    # Of nothing, the logarithm of 1.
    empty = tl.where(summed > 0, 0.0, 1.0)
    tl.store(over_HQ + h * Q + q, most * (1 - empty) + tl.log(summed + empty))
