"""Triton functions on 4×4 poses that live in registers, as tuples of 16 tensors.

Used by `em_kernels` and `em_gradient_kernels`; the shape suffixes are those of the first.
"""

import triton
import triton.language as tl


@triton.jit
def load_pose(start, step: tl.constexpr):
    """16 numbers `step` apart."""
    return [
        tl.load(start + i * step) for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def store_pose(start, step: tl.constexpr, values, mask):
    """16 numbers `step` apart."""
    for i in tl.static_range(16):
        tl.store(start + i * step, values[i], mask=mask)


@triton.jit
def fill(value):
    """16 times the same."""
    return [value for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def votes_of(m, w, at):
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
def plus_times_transposed(to, d, w):
    """The sum to + d Wᵀ."""
    return [
        to[i]
        + d[4 * (i // 4)] * w[4 * (i % 4)]
        + d[4 * (i // 4) + 1] * w[4 * (i % 4) + 1]
        + d[4 * (i // 4) + 2] * w[4 * (i % 4) + 2]
        + d[4 * (i // 4) + 3] * w[4 * (i % 4) + 3]
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def plus_transposed_times(to, m, d):
    """The sum to + Mᵀ d."""
    return [
        to[i]
        + m[i // 4] * d[i % 4]
        + m[4 + i // 4] * d[4 + i % 4]
        + m[8 + i // 4] * d[8 + i % 4]
        + m[12 + i // 4] * d[12 + i % 4]
        for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ]


@triton.jit
def minus(a):
    """−a."""
    return [-x for x in a]


@triton.jit
def plus(a, b):
    """The sum a + b."""
    return [a[i] + b[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def product(a, b):
    """The product a b, number by number."""
    return [a[i] * b[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def plus_product(a, b, c):
    """The sum a + b c, number by number."""
    return [a[i] + b[i] * c[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def plus_scaled(a, b, x):
    """The sum a + b x for one number x."""
    return [a[i] + b[i] * x for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)]


@triton.jit
def plus_dot(start, a, b):
    """The sum start + Σ a b, in four sums so that no chain of additions is long."""
    s0 = start + a[0] * b[0] + a[4] * b[4] + a[8] * b[8] + a[12] * b[12]
    s1 = a[1] * b[1] + a[5] * b[5] + a[9] * b[9] + a[13] * b[13]
    s2 = a[2] * b[2] + a[6] * b[6] + a[10] * b[10] + a[14] * b[14]
    s3 = a[3] * b[3] + a[7] * b[7] + a[11] * b[11] + a[15] * b[15]
    return (s0 + s1) + (s2 + s3)


@triton.jit
def total_of(a):
    """Σ a."""
    s0, s1 = (a[0] + a[1]) + (a[2] + a[3]), (a[4] + a[5]) + (a[6] + a[7])
    s2, s3 = (a[8] + a[9]) + (a[10] + a[11]), (a[12] + a[13]) + (a[14] + a[15])
    return (s0 + s1) + (s2 + s3)


@triton.jit
def parents_here(J, SKEW, BJ: tl.constexpr, Q: tl.constexpr):
    """Parents and images of this program's tile, and which parents are real."""
    j = (tl.program_id(0) * BJ + tl.arange(0, BJ))[None, :]
    real = (j < J) & (tl.arange(0, Q)[:, None] >= 0)
    return tl.minimum(j, J - 1), SKEW + tl.arange(0, Q)[:, None], real


@triton.jit
def off(poses_HFQ, transforms_NJF, offsets_NF, h, n, j, q, J, start, HAS, Q: tl.constexpr):
    """V + start of child n, at h among the children of all blocks of images."""
    m = load_pose(poses_HFQ + h * 16 * Q + q, Q)
    # As many pointers as images, all the same: the parents stay with their threads.
    w = load_pose(transforms_NJF + (n * J + j) * 16 + q * 0, 1)
    if HAS:
        start = plus(start, load_pose(offsets_NF + n * 16, 1))
    return votes_of(m, w, start)


@triton.jit
def share_of(logs_PNJQ, over_HQ, h, pair, q, Q: tl.constexpr):
    """R_ij."""
    return tl.exp(tl.load(logs_PNJQ + pair * Q + q) - tl.load(over_HQ + h * Q + q))
