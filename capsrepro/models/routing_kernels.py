"""Triton kernels of dynamic routing by tiles; `routing_cuda` launches them.

A program holds the poses of some images' children, BI of them at a time, in registers and goes
over all parents twice: one product per parent pulls a vector of each image back through the
matrices of the tile, the other sums the tile's weighted votes. No vote is ever written.

Shape suffixes as in `capsrepro.models.routing`, and in the tiles:
    N  images of a tile             X  numbers of a tile's children, E·BI, children innermost
    T  iterations                   C  chunks of children, each summed by one program
"""

from __future__ import annotations

import triton
import triton.language as tl

# Compile-time values of `MODE`.
UNIFORM = tl.constexpr(0)
FORWARD = tl.constexpr(1)
BACKWARD = tl.constexpr(2)

_EPSILON = tl.constexpr(1e-9)


@triton.jit
def _dot(left, right, PRECISION: tl.constexpr):  # noqa: D103
    return tl.dot(left, right, input_precision=PRECISION, out_dtype=left.dtype)


@triton.jit
def route_tiles(
    children_BEI,
    transforms_JEID,
    pull_BJD,
    couplings_JBI,
    slopes_JBI,
    partial_CBJD,
    B,
    I,
    J: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
    BB: tl.constexpr,
    BI: tl.constexpr,
    MODE: tl.constexpr,
    NONE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One iteration over a tile of children: weights, and the sums of votes that they weigh.

    UNIFORM: every weight is an equal share. FORWARD: weights are the softmax over parents of
    û·pull, written to `couplings_JBI`. BACKWARD: pull is the gradient of the sums; weights are the
    gradients of the logits, made of û·pull and the couplings and written to `slopes_JBI`.
    """
    chunk = tl.program_id(0)
    b_N = tl.program_id(1) * BB + tl.arange(0, BB)
    x_X = tl.arange(0, E * BI)
    d_D = tl.arange(0, D)
    i_X = chunk * BI + x_X % BI
    i_I = chunk * BI + tl.arange(0, BI)
    row_X = (x_X // BI) * I + i_X
    real_N = b_N < B
    real_X = i_X < I
    u_NX = tl.load(
        children_BEI + b_N[:, None] * (E * I) + row_X[None, :],
        mask=real_N[:, None] & real_X[None, :],
        other=0.0,
    )
    at_NI = b_N[:, None] * I + i_I[None, :]
    real_NI = real_N[:, None] & (i_I < I)[None, :]
    pulled_JBI = slopes_JBI if MODE == BACKWARD else couplings_JBI
    top_NI = tl.full([BB, BI], 0.0 if NONE else float("-inf"), u_NX.dtype)
    total_NI = tl.full([BB, BI], 1.0 if NONE else 0.0, u_NX.dtype)
    mean_NI = tl.zeros([BB, BI], u_NX.dtype)
    if MODE != UNIFORM:
        for j in range(J):
            w_DX = tl.load(
                transforms_JEID + (j * E * I + row_X[None, :]) * D + d_D[:, None],
                mask=real_X[None, :],
                other=0.0,
            )
            v_ND = tl.load(
                pull_BJD + (b_N[:, None] * J + j) * D + d_D[None, :],
                mask=real_N[:, None],
                other=0.0,
            )
            product_NX = _dot(v_ND, w_DX, PRECISION) * u_NX
            pulled_NI = tl.sum(tl.reshape(product_NX, [BB, E, BI]), 1)
            tl.store(pulled_JBI + j * B * I + at_NI, pulled_NI, mask=real_NI)
            if MODE == BACKWARD:
                c_NI = tl.load(couplings_JBI + j * B * I + at_NI, mask=real_NI, other=0.0)
                mean_NI += c_NI * pulled_NI
            else:
                higher_NI = tl.maximum(top_NI, pulled_NI)
                total_NI = total_NI * tl.exp(top_NI - higher_NI) + tl.exp(pulled_NI - higher_NI)
                top_NI = higher_NI
        # Below, threads read what others have written.
        tl.debug_barrier()
    for j in range(J):
        a_NX = u_NX
        if MODE != UNIFORM:
            weight_NI = tl.load(pulled_JBI + j * B * I + at_NI, mask=real_NI, other=0.0)
            if MODE == BACKWARD:
                c_NI = tl.load(couplings_JBI + j * B * I + at_NI, mask=real_NI, other=0.0)
                weight_NI = c_NI * (weight_NI - mean_NI)
            else:
                weight_NI = tl.exp(weight_NI - top_NI) / total_NI
            tl.store(pulled_JBI + j * B * I + at_NI, weight_NI, mask=real_NI)
            a_NEI = tl.reshape(u_NX, [BB, E, BI]) * weight_NI[:, None, :]
            a_NX = tl.reshape(a_NEI, [BB, E * BI])
        w_XD = tl.load(
            transforms_JEID + (j * E * I + row_X[:, None]) * D + d_D[None, :],
            mask=real_X[:, None],
            other=0.0,
        )
        sums_ND = _dot(a_NX, w_XD, PRECISION)
        if MODE == UNIFORM:
            sums_ND = sums_ND / (J + NONE)
        at_ND = ((chunk * B + b_N[:, None]) * J + j) * D + d_D[None, :]
        tl.store(partial_CBJD + at_ND, sums_ND, mask=real_N[:, None])


@triton.jit
def _partial_sum(
    partial_CK, chunks, K, k_K, real_K, CHUNKS: tl.constexpr, KEYS: tl.constexpr
):  # noqa: D103
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
    s_K = _partial_sum(partial_CBJD, chunks, rows * D, k_K, real_K, CHUNKS, ROWS * D)
    if BIAS:
        s_K += tl.load(bias_JD + k_K % (J * D))
    tl.store(sums_BJD + k_K, s_K, mask=real_K)
    s_RD = tl.reshape(s_K, [ROWS, D])
    squared_R = tl.sum(s_RD * s_RD, 1)
    factor_R = squared_R / ((1.0 + squared_R) * tl.sqrt(squared_R + _EPSILON))
    v_K = tl.reshape(s_RD * factor_R[:, None], [ROWS * D])
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
    g_K = _partial_sum(partial_CBJD, chunks, rows * D, k_K, real_K, CHUNKS, ROWS * D)
    if ABOVE:
        g_K += tl.load(above_BJD + k_K, mask=real_K, other=0.0)
    tl.store(total_BJD + k_K, g_K, mask=real_K)
    g_RD = tl.reshape(g_K, [ROWS, D])
    s_RD = tl.reshape(tl.load(sums_BJD + k_K, mask=real_K, other=0.0), [ROWS, D])
    squared_R = tl.sum(s_RD * s_RD, 1)
    along_R = tl.sum(s_RD * g_RD, 1)
    root_R = tl.sqrt(squared_R + _EPSILON)
    below_R = 1.0 + squared_R
    factor_R = squared_R / (below_R * root_R)
    steepness_R = 2.0 / (below_R * below_R * root_R) - factor_R / (squared_R + _EPSILON)
    slope_RD = g_RD * factor_R[:, None] + s_RD * (along_R * steepness_R)[:, None]
    tl.store(slopes_BJD + k_K, tl.reshape(slope_RD, [ROWS * D]), mask=real_K)

@triton.jit
def _votes_slopes(
    couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, B, I, terms, j, b_N, i_I,
    J: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    FIRST: tl.constexpr, FULL: tl.constexpr, NONE: tl.constexpr,
):
    d_D = tl.arange(0, D)
    real_N = b_N < B
    at_IN = b_N[None, :] * I + i_I[:, None]
    real_IN = real_N[None, :] & (i_I < I)[:, None]
    at_ND = (b_N[:, None] * J + j) * D + d_D[None, :]
    votes_IND = tl.zeros([BI, BB, D], couplings_TJBI.dtype.element_ty)
    if FIRST:
        ds_ND = tl.load(sums_slopes_TBJD + at_ND, mask=real_N[:, None], other=0.0)
        votes_IND += (ds_ND / (J + NONE))[None, :, :]
    for t in range(terms):
        ds_ND = tl.load(
            sums_slopes_TBJD + (t + FIRST) * B * J * D + at_ND, mask=real_N[:, None], other=0.0
        )
        c_IN = tl.load(couplings_TJBI + (t * J + j) * B * I + at_IN, mask=real_IN, other=0.0)
        votes_IND += c_IN[:, :, None] * ds_ND[None, :, :]
        if FULL:
            v_ND = tl.load(pulls_TBJD + t * B * J * D + at_ND, mask=real_N[:, None], other=0.0)
            dl_IN = tl.load(slopes_TJBI + (t * J + j) * B * I + at_IN, mask=real_IN, other=0.0)
            votes_IND += dl_IN[:, :, None] * v_ND[None, :, :]
    return votes_IND


@triton.jit
def children_slopes(
    transforms_JEID, couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, children_slopes_BEI,
    B, I, terms,
    J: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    FIRST: tl.constexpr, FULL: tl.constexpr, NONE: tl.constexpr, PRECISION: tl.constexpr,
):
    i_I = tl.program_id(0) * BI + tl.arange(0, BI)
    b_N = tl.program_id(1) * BB + tl.arange(0, BB)
    e_E = tl.arange(0, E)
    d_D = tl.arange(0, D)
    du_INE = tl.zeros([BI, BB, E], couplings_TJBI.dtype.element_ty)
    for j in range(J):
        votes_IND = _votes_slopes(
            couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, B, I, terms, j, b_N, i_I,
            J, D, BB, BI, FIRST, FULL, NONE,
        )
        w_IDE = tl.load(
            transforms_JEID
            + ((j * E + e_E)[None, None, :] * I + i_I[:, None, None]) * D + d_D[None, :, None],
            mask=(i_I < I)[:, None, None], other=0.0,
        )
        du_INE += _dot(votes_IND, w_IDE, PRECISION)
    tl.store(
        children_slopes_BEI + (b_N[None, :, None] * E + e_E[None, None, :]) * I + i_I[:, None, None],
        du_INE, mask=(b_N < B)[None, :, None] & (i_I < I)[:, None, None],
    )


@triton.jit
def transforms_slopes(
    children_BEI, couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, transforms_slopes_JEID,
    B, I, terms,
    J: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    FIRST: tl.constexpr, FULL: tl.constexpr, NONE: tl.constexpr, PRECISION: tl.constexpr,
):
    i_I = tl.program_id(0) * BI + tl.arange(0, BI)
    j = tl.program_id(1)
    e_E = tl.arange(0, E)
    d_D = tl.arange(0, D)
    dw_IDE = tl.zeros([BI, D, E], couplings_TJBI.dtype.element_ty)
    for image in range(0, B, BB):
        b_N = image + tl.arange(0, BB)
        votes_IND = _votes_slopes(
            couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, B, I, terms, j, b_N, i_I,
            J, D, BB, BI, FIRST, FULL, NONE,
        )
        u_INE = tl.load(
            children_BEI + (b_N[None, :, None] * E + e_E[None, None, :]) * I + i_I[:, None, None],
            mask=(b_N < B)[None, :, None] & (i_I < I)[:, None, None], other=0.0,
        )
        dw_IDE += _dot(tl.trans(votes_IND, 0, 2, 1), u_INE, PRECISION)
    tl.store(
        transforms_slopes_JEID
        + ((j * E + e_E)[None, None, :] * I + i_I[:, None, None]) * D + d_D[None, :, None],
        dw_IDE, mask=(i_I < I)[:, None, None],
    )
