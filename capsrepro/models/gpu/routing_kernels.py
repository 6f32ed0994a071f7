"""Triton kernels of dynamic routing by tiles of children; `routing_launches` starts them.

The votes of a tile exist at most in registers, for one parent at a time.

Shape suffixes as in `capsrepro.models.routing`, and in the tiles:
    N  images of a tile             X  numbers of a tile's children, E·BI, children innermost
    T  iterations                   C  chunks of children, each one tile
A tile has BB images and BI children, of which those below B and I are real.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Values of MODE; see `route_tiles`.
UNIFORM = tl.constexpr(0)
FORWARD = tl.constexpr(1)
BACKWARD = tl.constexpr(2)


@triton.jit
def _product(left, right):
    """Matrix product; of float32 numbers as three of their halves, which tensor cores take.

    A half has the 11 leading bits, or the others. That of two low halves is below rounding.
    """
    if left.dtype == tl.float32:
        left_high, right_high = _high(left), _high(right)
        total = tl.dot(left - left_high, right_high, input_precision="tf32")
        total = tl.dot(left_high, right - right_high, total, input_precision="tf32")
        total = tl.dot(left_high, right_high, total, input_precision="tf32")
    else:
        total = tl.dot(left, right, out_dtype=left.dtype)
    return total


@triton.jit
def _high(x):
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _as_factor(a_NX, BB: tl.constexpr, X: tl.constexpr):
    """Columns of each eight in the order 0, 2, 4, 6, 1, 3, 5, 7.

    Thus numbers of a product stay in the threads that hold them when they are a factor of the
    next: a thread has two neighbouring columns of a product, but every fourth of a factor.
    """
    return tl.reshape(tl.trans(tl.reshape(a_NX, [BB, X // 8, 4, 2]), 0, 1, 3, 2), [BB, X])


@triton.jit
def _weigh(weights_JBI, couplings_JBI, at_NI, real_NI, top_NI, total_NI, MODE: tl.constexpr):
    """Turn what was pulled back into weights, in place."""
    weight_NI = tl.load(weights_JBI + at_NI, mask=real_NI, other=0.0)
    if MODE == FORWARD:
        weight_NI = tl.exp(weight_NI - top_NI) / total_NI
    else:
        c_NI = tl.load(couplings_JBI + at_NI, mask=real_NI, other=0.0)
        weight_NI = c_NI * (weight_NI - total_NI)
    tl.store(weights_JBI + at_NI, weight_NI, mask=real_NI)
    return weight_NI


@triton.jit
def route_tiles(
    children_BEI, transforms_JEID, pull_BJD, couplings_JBI, slopes_JBI, partial_CBJD, B, I,
    J: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    MODE: tl.constexpr, NONE: tl.constexpr,
):  # fmt: skip
    """One iteration over a tile of children: weights, and the sums of votes that they weigh.

    UNIFORM: every weight is an equal share. FORWARD: weights are the softmax over parents of
    û·pull, written to `couplings_JBI`. BACKWARD: pull is the gradient of the sums; weights are the
    gradients of the logits, made of û·pull and the couplings and written to `slopes_JBI`.
    """
    chunk = tl.program_id(0)
    b_N = tl.program_id(1) * BB + tl.arange(0, BB)
    i_I = chunk * BI + tl.arange(0, BI)
    x_X = tl.arange(0, E * BI)
    d_D = tl.arange(0, D)
    row_X = (x_X // BI) * I + chunk * BI + x_X % BI
    real_X = chunk * BI + x_X % BI < I
    factor_X = x_X // 8 * 8 + x_X % 4 * 2 + x_X % 8 // 4  # See `_as_factor`.
    factor_row_X = (factor_X // BI) * I + chunk * BI + factor_X % BI
    real_factor_X = chunk * BI + factor_X % BI < I
    real_N = b_N < B
    u_NX = tl.load(
        children_BEI + b_N[:, None] * (E * I) + row_X[None, :],
        mask=real_N[:, None] & real_X[None, :],
        other=0.0,
    )
    at_NI = b_N[:, None] * I + i_I[None, :]
    real_NI = real_N[:, None] & (i_I < I)[None, :]
    weights_JBI = slopes_JBI if MODE == BACKWARD else couplings_JBI
    if MODE != UNIFORM:
        top_NI, total_NI = _pull_back(
            u_NX, transforms_JEID, pull_BJD, couplings_JBI, weights_JBI,
            b_N, row_X, at_NI, real_N, real_X, real_NI, B, I,
            J, E, D, BB, BI, MODE, NONE,
        )  # fmt: skip
        # What a thread reads below another may have written.
        tl.debug_barrier()
    for j in range(J):
        a_NX = u_NX
        if MODE != UNIFORM:
            weight_NI = _weigh(
                weights_JBI, couplings_JBI, j * B * I + at_NI, real_NI, top_NI, total_NI, MODE
            )
            a_NEI = tl.reshape(u_NX, [BB, E, BI]) * weight_NI[:, None, :]
            a_NX = tl.reshape(a_NEI, [BB, E * BI])
        a_NX = _as_factor(a_NX, BB, E * BI)
        at_XD = (j * E * I + factor_row_X[:, None]) * D + d_D[None, :]
        w_XD = tl.load(transforms_JEID + at_XD, mask=real_factor_X[:, None], other=0.0)
        s_ND = _product(a_NX, w_XD)
        if MODE == UNIFORM:
            s_ND = s_ND / (J + NONE)
        at_ND = ((chunk * B + b_N[:, None]) * J + j) * D + d_D[None, :]
        tl.store(partial_CBJD + at_ND, s_ND, mask=real_N[:, None])


@triton.jit
def _pull_back(
    u_NX, transforms_JEID, pull_BJD, couplings_JBI, weights_JBI,
    b_N, row_X, at_NI, real_N, real_X, real_NI, B, I,
    J: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    MODE: tl.constexpr, NONE: tl.constexpr,
):  # fmt: skip
    """Write û·pull to `weights_JBI`.

    Returns:
        FORWARD: the largest logit of the parents and the sum of e^(logit - largest). BACKWARD:
        nothing of use and the mean of û·pull over the parents, by their couplings.
    """
    d_D = tl.arange(0, D)
    top_NI = tl.full([BB, BI], 0.0 if NONE else float("-inf"), u_NX.dtype)
    total_NI = tl.full([BB, BI], 1.0 if NONE and MODE == FORWARD else 0.0, u_NX.dtype)
    for j in range(J):
        at_DX = (j * E * I + row_X[None, :]) * D + d_D[:, None]
        w_DX = tl.load(transforms_JEID + at_DX, mask=real_X[None, :], other=0.0)
        at_ND = (b_N[:, None] * J + j) * D + d_D[None, :]
        v_ND = tl.load(pull_BJD + at_ND, mask=real_N[:, None], other=0.0)
        agreement_NX = _product(v_ND, w_DX) * u_NX
        pulled_NI = tl.sum(tl.reshape(agreement_NX, [BB, E, BI]), 1)
        tl.store(weights_JBI + j * B * I + at_NI, pulled_NI, mask=real_NI)
        if MODE == FORWARD:
            higher_NI = tl.maximum(top_NI, pulled_NI)
            total_NI = total_NI * tl.exp(top_NI - higher_NI) + tl.exp(pulled_NI - higher_NI)
            top_NI = higher_NI
        else:
            c_NI = tl.load(couplings_JBI + j * B * I + at_NI, mask=real_NI, other=0.0)
            total_NI += c_NI * pulled_NI
    return top_NI, total_NI


@triton.jit
def _votes_slopes(
    couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, j, b_N, i_I, B, I,
    J: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    TERMS: tl.constexpr, FIRST: tl.constexpr, FULL: tl.constexpr, NONE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile's votes for parent j: Σ_t c^t ds^t + dl^t V^t, in registers.

    FIRST: `sums_slopes_TBJD` begins with iteration 1, whose couplings are equal shares, and the
    TERMS others follow. FULL: the logits have gradients.
    """
    d_D = tl.arange(0, D)
    real_N = b_N < B
    at_IN = b_N[None, :] * I + i_I[:, None]
    real_IN = real_N[None, :] & (i_I < I)[:, None]
    at_ND = (b_N[:, None] * J + j) * D + d_D[None, :]
    votes_IND = tl.zeros([BI, BB, D], couplings_TJBI.dtype.element_ty)
    if FIRST:
        ds_ND = tl.load(sums_slopes_TBJD + at_ND, mask=real_N[:, None], other=0.0)
        votes_IND += (ds_ND / (J + NONE))[None, :, :]
    for t in tl.static_range(TERMS):
        t_ND, t_IN = t * B * J * D + at_ND, (t * J + j) * B * I + at_IN
        ds_ND = tl.load(
            sums_slopes_TBJD + FIRST * B * J * D + t_ND, mask=real_N[:, None], other=0.0
        )
        c_IN = tl.load(couplings_TJBI + t_IN, mask=real_IN, other=0.0)
        votes_IND += c_IN[:, :, None] * ds_ND[None, :, :]
        if FULL:
            v_ND = tl.load(pulls_TBJD + t_ND, mask=real_N[:, None], other=0.0)
            dl_IN = tl.load(slopes_TJBI + t_IN, mask=real_IN, other=0.0)
            votes_IND += dl_IN[:, :, None] * v_ND[None, :, :]
    return votes_IND


@triton.jit
def children_slopes(
    transforms_JEID, couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, written_BEI,
    B, I,
    J: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    TERMS: tl.constexpr, FIRST: tl.constexpr, FULL: tl.constexpr, NONE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of children: Σ_jd of the votes' gradient times the matrices."""
    i_I = tl.program_id(0) * BI + tl.arange(0, BI)
    b_N = tl.program_id(1) * BB + tl.arange(0, BB)
    e_E = tl.arange(0, E)
    d_D = tl.arange(0, D)
    real_I = (i_I < I)[:, None, None]
    du_INE = tl.zeros([BI, BB, E], couplings_TJBI.dtype.element_ty)
    for j in range(J):
        votes_IND = _votes_slopes(
            couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, j, b_N, i_I, B, I,
            J, D, BB, BI, TERMS, FIRST, FULL, NONE,
        )  # fmt: skip
        row_IDE = (j * E + e_E)[None, None, :] * I + i_I[:, None, None]
        w_IDE = tl.load(transforms_JEID + row_IDE * D + d_D[None, :, None], mask=real_I, other=0.0)
        du_INE += _product(votes_IND, w_IDE)
    at_INE = (b_N[None, :, None] * E + e_E[None, None, :]) * I + i_I[:, None, None]
    tl.store(written_BEI + at_INE, du_INE, mask=(b_N < B)[None, :, None] & real_I)


@triton.jit
def transforms_slopes(
    children_BEI, couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, written_JEID,
    B, I,
    J: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BB: tl.constexpr, BI: tl.constexpr,
    TERMS: tl.constexpr, FIRST: tl.constexpr, FULL: tl.constexpr, NONE: tl.constexpr,
):  # fmt: skip
    """Gradient of one parent's matrices of BI children: Σ_b of u times the votes' gradient."""
    i_I = tl.program_id(0) * BI + tl.arange(0, BI)
    j = tl.program_id(1)
    e_E = tl.arange(0, E)
    d_D = tl.arange(0, D)
    real_I = (i_I < I)[:, None, None]
    dw_IDE = tl.zeros([BI, D, E], couplings_TJBI.dtype.element_ty)
    for image in range(0, B, BB):
        b_N = image + tl.arange(0, BB)
        votes_IND = _votes_slopes(
            couplings_TJBI, slopes_TJBI, sums_slopes_TBJD, pulls_TBJD, j, b_N, i_I, B, I,
            J, D, BB, BI, TERMS, FIRST, FULL, NONE,
        )  # fmt: skip
        at_INE = (b_N[None, :, None] * E + e_E[None, None, :]) * I + i_I[:, None, None]
        u_INE = tl.load(children_BEI + at_INE, mask=(b_N < B)[None, :, None] & real_I, other=0.0)
        dw_IDE += _product(tl.trans(votes_IND, 0, 2, 1), u_INE)
    row_IDE = (j * E + e_E)[None, None, :] * I + i_I[:, None, None]
    tl.store(written_JEID + row_IDE * D + d_D[None, :, None], dw_IDE, mask=real_I)
