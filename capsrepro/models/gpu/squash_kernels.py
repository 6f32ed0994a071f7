"""Triton kernels of the squash between two iterations of routing; `routing_launches` starts them.

Both add the partial sums of all chunks of children first, always in the same order.

Shape suffixes as in `capsrepro.models.routing`, and:
    C  chunks of children           R  rows of a program, each a parent of an image
    K  the R·D numbers of the rows
"""

from __future__ import annotations

import triton
import triton.language as tl

_EPSILON = tl.constexpr(1e-9)  # That of `routing.squash`.


@triton.jit
def _sum_chunks(partial_CK, chunks, K, k_K, real_K, CHUNKS: tl.constexpr, KEYS: tl.constexpr):
    sums_CK = tl.zeros([CHUNKS, KEYS], partial_CK.dtype.element_ty)
    for first in range(0, chunks, CHUNKS):
        c_C = first + tl.arange(0, CHUNKS)
        sums_CK += tl.load(
            partial_CK + c_C[:, None] * K + k_K[None, :],
            mask=(c_C < chunks)[:, None] & real_K[None, :],
            other=0.0,
        )
    return tl.sum(sums_CK, 0)


@triton.jit
def squashed(s_RD):
    """Squash of each row (DR17 Eq. 1)."""
    squared_R = tl.sum(s_RD * s_RD, 1)
    factor_R = squared_R / ((1.0 + squared_R) * tl.sqrt(squared_R + _EPSILON))
    return s_RD * factor_R[:, None]


@triton.jit
def unsquashed(s_RD, g_RD):
    """Gradient of the rows s from that of their squash, g."""
    squared_R = tl.sum(s_RD * s_RD, 1)
    along_R = tl.sum(s_RD * g_RD, 1)
    root_R = tl.sqrt(squared_R + _EPSILON)
    below_R = 1.0 + squared_R
    factor_R = squared_R / (below_R * root_R)
    steepness_R = 2.0 / (below_R * below_R * root_R) - factor_R / (squared_R + _EPSILON)
    return g_RD * factor_R[:, None] + s_RD * (along_R * steepness_R)[:, None]


@triton.jit
def squash_sums(
    partial_CBJD,
    bias_JD,
    sums_BJD,
    pull_BJD,
    written_BJD,
    chunks,
    rows,
    J: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BIAS: tl.constexpr,
    PULLED: tl.constexpr,
):
    """The sums s of all chunks (DR17 Eq. 2) and their squash v (Eq. 1).

    `written_BJD` becomes v, plus `pull_BJD` if PULLED.
    """
    k_K = tl.program_id(0) * (ROWS * D) + tl.arange(0, ROWS * D)
    real_K = k_K < rows * D
    s_K = _sum_chunks(partial_CBJD, chunks, rows * D, k_K, real_K, CHUNKS, ROWS * D)
    if BIAS:
        s_K += tl.load(bias_JD + k_K % (J * D))
    tl.store(sums_BJD + k_K, s_K, mask=real_K)
    v_K = tl.reshape(squashed(tl.reshape(s_K, [ROWS, D])), [ROWS * D])
    if PULLED:
        v_K += tl.load(pull_BJD + k_K, mask=real_K, other=0.0)
    tl.store(written_BJD + k_K, v_K, mask=real_K)


@triton.jit
def unsquash_sums(
    partial_CBJD,
    sums_BJD,
    above_BJD,
    total_BJD,
    slopes_BJD,
    chunks,
    rows,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ABOVE: tl.constexpr,
):
    """The gradient of the sums s, `slopes_BJD`, from that of their squash v.

    The latter is the partial sums and, if ABOVE, `above_BJD`; it is written to `total_BJD` where
    there are partial sums.
    """
    k_K = tl.program_id(0) * (ROWS * D) + tl.arange(0, ROWS * D)
    real_K = k_K < rows * D
    g_K = _sum_chunks(partial_CBJD, chunks, rows * D, k_K, real_K, CHUNKS, ROWS * D)
    if ABOVE:
        g_K += tl.load(above_BJD + k_K, mask=real_K, other=0.0)
    tl.store(total_BJD + k_K, g_K, mask=real_K)
    g_RD = tl.reshape(g_K, [ROWS, D])
    s_RD = tl.reshape(tl.load(sums_BJD + k_K, mask=real_K, other=0.0), [ROWS, D])
    slope_RD = unsquashed(s_RD, g_RD)
    tl.store(slopes_BJD + k_K, tl.reshape(slope_RD, [ROWS * D]), mask=real_K)
