"""Triton kernels of `capsrepro.models.votes_cuda`: votes of 4×4 poses that live in registers.

The threads of a program are Q places, and all else (child, parent, component) is an index of a
loop: nothing is summed across threads but the gradient of the transforms, once at the end. So that
neighbours read neighbours and every component is a constant step away, places come in P blocks of
Q, the last one filled up with zeros. Shape suffixes here are the order in memory:
    P, Q  blocks of places and the places of one      F  components, rows of the pose by columns
    S     ranges of children or of blocks             U  uses, see `_pull`
The others are those of `capsrepro.models.votes`. Tuples of 16 tensors are poses or votes. BN
divides N: no index is ever out of range.
"""

import triton
import triton.language as tl

# Compiled once for all sizes. SKEW is 0, which the compiler is not to know: it would let a thread
# take neighbouring places, not several children of one place.
_kernel = triton.jit(do_not_specialize=["SKEW", "P", "J", "N", "S", "STEP", "PARENTS"])


@triton.jit
def _load(start, step: tl.constexpr):
    """16 numbers `step` apart."""
    return [
        tl.load(start + i * step) for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def _store(start, step: tl.constexpr, values):
    for i in tl.static_range(16):
        tl.store(start + i * step, values[i])


@triton.jit
def _fill(value):
    return [value for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def _votes(m, w, at):
    """M W + at."""
    return [
        at[i]
        + m[4 * (i // 4)] * w[i % 4]
        + m[4 * (i // 4) + 1] * w[4 + i % 4]
        + m[4 * (i // 4) + 2] * w[8 + i % 4]
        + m[4 * (i // 4) + 3] * w[12 + i % 4]
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def _times_transposed(to, d, w):
    """to + d Wᵀ."""
    return [
        to[i]
        + d[4 * (i // 4)] * w[4 * (i % 4)]
        + d[4 * (i // 4) + 1] * w[4 * (i % 4) + 1]
        + d[4 * (i // 4) + 2] * w[4 * (i % 4) + 2]
        + d[4 * (i // 4) + 3] * w[4 * (i % 4) + 3]
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def _transposed_times(to, m, d):
    """to + Mᵀ d."""
    return [
        to[i]
        + m[i // 4] * d[i % 4]
        + m[4 + i // 4] * d[4 + i % 4]
        + m[8 + i // 4] * d[8 + i % 4]
        + m[12 + i // 4] * d[12 + i % 4]
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def _minus(a):
    return [-x for x in a]


@triton.jit
def _plus(a, b):
    return [a[i] + b[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def _plus_product(a, b, c):
    return [a[i] + b[i] * c[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def _plus_scaled(a, b, x):
    return [a[i] + b[i] * x for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def _dot(start, a, b):
    """start + Σ a b, in four sums so that no chain of additions is long."""
    s0 = start + a[0] * b[0] + a[4] * b[4] + a[8] * b[8] + a[12] * b[12]
    s1 = a[1] * b[1] + a[5] * b[5] + a[9] * b[9] + a[13] * b[13]
    s2 = a[2] * b[2] + a[6] * b[6] + a[10] * b[10] + a[14] * b[14]
    s3 = a[3] * b[3] + a[7] * b[7] + a[11] * b[11] + a[15] * b[15]
    return (s0 + s1) + (s2 + s3)


@triton.jit
def _off(poses_PNFQ, transforms_NJF, offsets_NF, n, j, p, q, J, N, minus, HAS, Q: tl.constexpr):
    """V − centre of child n."""
    m = _load(poses_PNFQ + (p * N + n) * 16 * Q + q, Q)
    w = _load(transforms_NJF + (n * J + j) * 16, 1)
    if HAS:
        minus = _plus(minus, _load(offsets_NF + n * 16, 1))
    return _votes(m, w, minus)


@triton.jit
def _here(Q: tl.constexpr):
    """Block of places, parent and range of this program, and the places of a block."""
    return tl.program_id(1), tl.program_id(0), tl.program_id(2), tl.arange(0, Q)


@triton.jit
def _weight(logs_PNJQ, over_PNQ, active_PNQ, child, j, q, J, FIRST: tl.constexpr, Q: tl.constexpr):
    """R_ij and the weight R_ij a_i; in the first iteration the weight alone is given for R a."""
    active = tl.load(active_PNQ + child * Q + q)
    if FIRST:
        share = active * 0.0 + 1.0
    else:
        log = tl.load(logs_PNJQ + (child * J + j) * Q + q)
        share = tl.exp(log - tl.load(over_PNQ + child * Q + q))
    return share, share * active


@_kernel
def fit(
    logs_PNJQ, over_PNQ, active_PNQ, poses_PNFQ, transforms_NJF, offsets_NF,
    mass_SPJQ, mean_SPJFQ, square_SPJFQ,
    P, J, N, STEP, FIRST: tl.constexpr, HAS: tl.constexpr, Q: tl.constexpr,
):
    """Mass, mean and Σ w (V − mean)² over a range of children, by Welford's running update."""
    p, j, s, q = _here(Q)
    mass = tl.zeros([Q], active_PNQ.dtype.element_ty)
    mean, square = _fill(mass), _fill(mass)
    for n in range(s * STEP, tl.minimum(N, (s + 1) * STEP)):
        _, weight = _weight(logs_PNJQ, over_PNQ, active_PNQ, p * N + n, j, q, J, FIRST, Q)
        d = _off(
            poses_PNFQ, transforms_NJF, offsets_NF, n, j, p, q, J, N, _minus(mean), HAS, Q
        )
        mass += weight
        share = tl.where(weight > 0, weight / tl.where(mass > 0, mass, 1.0), 0.0)
        mean = _plus_scaled(mean, d, share)
        square = _plus_scaled(square, [x * x for x in d], weight - weight * share)
    place = (s * P + p) * J + j
    tl.store(mass_SPJQ + place * Q + q, mass)
    _store(mean_SPJFQ + place * 16 * Q + q, Q, mean)
    _store(square_SPJFQ + place * 16 * Q + q, Q, square)


@_kernel
def merge(
    mass_SPJQ, mean_SPJFQ, square_SPJFQ, mass_PJQ, mean_PJFQ, variance_PJFQ,
    epsilon, PARENTS, S, Q: tl.constexpr,
):
    """Moments over all ranges of children, divided by mass + ε; see `Votes.moments`."""
    q = tl.arange(0, Q)
    place = tl.program_id(0)
    mass = tl.load(mass_SPJQ + place * Q + q)
    mean = _load(mean_SPJFQ + place * 16 * Q + q, Q)
    square = _load(square_SPJFQ + place * 16 * Q + q, Q)
    for s in range(1, S):
        part = s * PARENTS + place
        more = tl.load(mass_SPJQ + part * Q + q)
        d = _plus(_load(mean_SPJFQ + part * 16 * Q + q, Q), _minus(mean))
        total = mass + more
        share = tl.where(more > 0, more / tl.where(total > 0, total, 1.0), 0.0)
        mean = _plus_scaled(mean, d, share)
        square = _plus(square, _load(square_SPJFQ + part * 16 * Q + q, Q))
        square = _plus_scaled(square, [x * x for x in d], mass * share)
        mass = total
    divisor = mass + epsilon
    tl.store(mass_PJQ + place * Q + q, mass)
    _store(mean_PJFQ + place * 16 * Q + q, Q, [x * (mass / divisor) for x in mean])
    # The mean that is kept is short of the mean of the votes by a share of ε.
    short = [x * (epsilon / divisor) for x in mean]
    square = _plus_scaled(square, [x * x for x in short], mass)
    _store(variance_PJFQ + place * 16 * Q + q, Q, [x / divisor for x in square])


@_kernel
def offer(
    centres_PJFQ, precisions_PJFQ, constants_PJQ, poses_PNFQ, transforms_NJF, offsets_NF, logs_PNJQ,
    P, J, N, STEP, HAS: tl.constexpr, Q: tl.constexpr,
):
    """constant − ½ Σ precision · (V − centre)² for a range of children."""
    p, j, s, q = _here(Q)
    place = (p * J + j) * 16 * Q + q
    minus = _minus(_load(centres_PJFQ + place, Q))
    precisions = [x * -0.5 for x in _load(precisions_PJFQ + place, Q)]
    constant = tl.load(constants_PJQ + (p * J + j) * Q + q)
    for n in range(s * STEP, tl.minimum(N, (s + 1) * STEP)):
        d = _off(poses_PNFQ, transforms_NJF, offsets_NF, n, j, p, q, J, N, minus, HAS, Q)
        log = _dot(constant, [x * x for x in d], precisions)
        tl.store(logs_PNJQ + ((p * N + n) * J + j) * Q + q, log)


@_kernel
def total(logs_PNJQ, here_PNQ, J, Q: tl.constexpr):
    """log Σ_j exp."""
    child, q = tl.program_id(0), tl.arange(0, Q)
    most = tl.load(logs_PNJQ + child * J * Q + q)
    for j in range(1, J):
        most = tl.maximum(most, tl.load(logs_PNJQ + (child * J + j) * Q + q))
    summed = most * 0.0
    for j in range(J):
        summed += tl.exp(tl.load(logs_PNJQ + (child * J + j) * Q + q) - most)
    tl.store(here_PNQ + child * Q + q, most + tl.log(summed))


@_kernel
def slope_weights(
    logs_PNJQ, over_PNQ, active_PNQ, mean_PJFQ, k_PJFQ, h_PJFQ, rest_PJQ,
    poses_PNFQ, transforms_NJF, offsets_NF, shared_PNJQ, weights_PNJQ,
    P, J, N, STEP, FIRST: tl.constexpr, HAS: tl.constexpr, Q: tl.constexpr,
):
    """R ∂w = R (rest + Σ D (h + D k)) and, but for the first iteration, w; for some children."""
    p, j, s, q = _here(Q)
    place = (p * J + j) * 16 * Q + q
    minus = _minus(_load(mean_PJFQ + place, Q))
    k, h = _load(k_PJFQ + place, Q), _load(h_PJFQ + place, Q)
    rest = tl.load(rest_PJQ + (p * J + j) * Q + q)
    for n in range(s * STEP, tl.minimum(N, (s + 1) * STEP)):
        child = p * N + n
        share, weight = _weight(logs_PNJQ, over_PNQ, active_PNQ, child, j, q, J, FIRST, Q)
        d = _off(poses_PNFQ, transforms_NJF, offsets_NF, n, j, p, q, J, N, minus, HAS, Q)
        d_weight = _dot(rest, d, _plus_product(h, d, k))
        tl.store(shared_PNJQ + (child * J + j) * Q + q, share * d_weight)
        if not FIRST:
            tl.store(weights_PNJQ + (child * J + j) * Q + q, weight)


@_kernel
def slope_parents(
    logs_PNJQ, here_PNQ, active_PNQ, shared_PNJQ, d_here_PNQ, centres_PJFQ,
    poses_PNFQ, transforms_NJF, offsets_NF, d_logs_PNJQ, zeroth_SPJQ, first_SPJFQ, second_SPJFQ,
    P, J, N, STEP, HAS: tl.constexpr, Q: tl.constexpr,
):
    """g = ∂log, and Σ g, Σ g D and Σ g D² over a range of children."""
    p, j, s, q = _here(Q)
    minus = _minus(_load(centres_PJFQ + (p * J + j) * 16 * Q + q, Q))
    zeroth = tl.zeros([Q], centres_PJFQ.dtype.element_ty)
    first, second = _fill(zeroth), _fill(zeroth)
    for n in range(s * STEP, tl.minimum(N, (s + 1) * STEP)):
        child = (p * N + n) * Q + q
        pair = ((p * N + n) * J + j) * Q + q
        portion = tl.exp(tl.load(logs_PNJQ + pair) - tl.load(here_PNQ + child))
        slope = tl.load(active_PNQ + child) * tl.load(shared_PNJQ + pair)
        slope += tl.load(d_here_PNQ + child) * portion
        tl.store(d_logs_PNJQ + pair, slope)
        d = _off(poses_PNFQ, transforms_NJF, offsets_NF, n, j, p, q, J, N, minus, HAS, Q)
        pulled = [x * slope for x in d]
        zeroth += slope
        first = _plus(first, pulled)
        second = _plus_product(second, pulled, d)
    place = (s * P + p) * J + j
    tl.store(zeroth_SPJQ + place * Q + q, zeroth)
    _store(first_SPJFQ + place * 16 * Q + q, Q, first)
    _store(second_SPJFQ + place * 16 * Q + q, Q, second)


@triton.jit
def _pull(weights, lines, child, parent, J, j, q, v, U: tl.constexpr, Q: tl.constexpr):
    """∂V = Σ_u w_u (slope_u V + level_u) over the uses that were made of the votes.

    The first has weights_PNQ, the others weights_PNJQ; all have lines_PJ2FQ.
    """
    zero = v[0] * 0.0
    slope, level = _fill(zero), _fill(zero)
    for u in tl.static_range(U):
        if u == 0:
            weight = tl.load(weights[u] + child * Q + q)
        else:
            weight = tl.load(weights[u] + (child * J + j) * Q + q)
        line = lines[u] + parent * 32 * Q + q
        slope = _plus_scaled(slope, _load(line, Q), weight)
        level = _plus_scaled(level, _load(line + 16 * Q, Q), weight)
    return _plus_product(level, slope, v)


@_kernel
def pull_poses(
    weights, lines, poses_PNFQ, transforms_NJF, offsets_NF, d_poses_PNFQ,
    SKEW, J, N, HAS: tl.constexpr, U: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr,
):
    """Gradient of the poses: Σ_j ∂V Wᵀ."""
    p, q = tl.program_id(1), SKEW + tl.arange(0, Q)[None, :]
    n = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    m = _load(poses_PNFQ + (p * N + n) * 16 * Q + q, Q)
    zero = tl.zeros([BN, Q], poses_PNFQ.dtype.element_ty)
    start, d_poses = _fill(zero), _fill(zero)
    if HAS:
        start = _plus(start, _load(offsets_NF + n * 16, 1))
    for j in range(J):
        w = _load(transforms_NJF + (n * J + j) * 16, 1)
        v = _votes(m, w, start)
        d_votes = _pull(weights, lines, p * N + n, p * J + j, J, j, q, v, U, Q)
        d_poses = _times_transposed(d_poses, d_votes, w)
    _store(d_poses_PNFQ + (p * N + n) * 16 * Q + q, Q, d_poses)


@_kernel
def pull_transforms(
    weights, lines, poses_PNFQ, transforms_NJF, offsets_NF, d_transforms_SNJF,
    SKEW, P, J, N, STEP, HAS: tl.constexpr, U: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr,
):
    """Gradient of the transforms: Σ_t Mᵀ ∂V over a range of blocks."""
    j, s = tl.program_id(0), tl.program_id(2)
    q, n = SKEW + tl.arange(0, Q)[None, :], (tl.program_id(1) * BN + tl.arange(0, BN))[:, None]
    w = _load(transforms_NJF + (n * J + j) * 16, 1)
    zero = tl.zeros([BN, Q], poses_PNFQ.dtype.element_ty)
    start, sums = _fill(zero), _fill(zero)
    if HAS:
        start = _plus(start, _load(offsets_NF + n * 16, 1))
    for p in range(s * STEP, tl.minimum(P, (s + 1) * STEP)):
        m = _load(poses_PNFQ + (p * N + n) * 16 * Q + q, Q)
        v = _votes(m, w, start)
        d_votes = _pull(weights, lines, p * N + n, p * J + j, J, j, q, v, U, Q)
        sums = _transposed_times(sums, m, d_votes)
    d_transforms = [tl.sum(x, axis=1)[:, None] for x in sums]
    _store(d_transforms_SNJF + ((s * N + n) * J + j) * 16, 1, d_transforms)
