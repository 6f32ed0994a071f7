"""Triton kernels of convolutions without padding; `convolution_launches` starts them.

A convolution and its two gradients are matrix products over images, where one place and its
channels are a block of columns: a tile of the images' memory, seen as a matrix (B, H·W·C), is what
as many images hold at one pixel. No patches are written, and no tile reads beyond an image.

Shape suffixes: B images, H rows, W columns, C channels; Y rows, X columns and O channels of the
result; k rows and columns of a kernel. Tiles: M rows, N columns, K added over.

Work is dealt out in steps, of one product of tiles each. Programs take whole tiles of a result in
`whole` rounds, and equal `share`s of the steps of the tiles that are left; a tile may then be
shared by neighbours, whose parts are added by `add_parts` in their order.

PARTS are those of a factor. Of 16-bit factors there are 0: tiles are turned as they are loaded.
Tensor cores take no factors of 32 bits but tiles of neighbours along K; those are laid out so, and
rounded to 11 bits, by `part_factors`. A second part is what rounding lost, and lies behind the
first one's rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _store(
    target, tile_MN, row, column, rows, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    r_M = row + tl.arange(0, M)
    at_MN = (r_M * WIDTH)[:, None] + (column + tl.arange(0, N))[None, :]
    tile_MN = tile_MN.to(target.dtype.element_ty)
    if MASKED:
        tl.store(target + at_MN, tile_MN, mask=(r_M < rows)[:, None])
    else:
        tl.store(target + at_MN, tile_MN)


@triton.jit
def _items(program, whole, share, steps_left, STEPS: tl.constexpr):
    """Tiles that a program works on: whole ones, then those that its share has a part of."""
    first = program * share
    end = tl.minimum(first + share, steps_left)
    parts = tl.where(end > first, (end - 1) // STEPS - first // STEPS + 1, 0)
    return whole + parts


@triton.jit
def _item(item, program, whole, share, steps_left, STEPS: tl.constexpr):
    """A tile, the steps from `low` to `high` to do for it, and where to put a part of it."""
    programs = tl.num_programs(0)
    first = program * share
    left = first // STEPS + item - whole
    is_whole = item < whole
    low = tl.maximum(first - left * STEPS, 0)
    high = tl.minimum(tl.minimum(first + share, steps_left) - left * STEPS, STEPS)
    tile = tl.where(is_whole, item * programs + program, whole * programs + left)
    # Of a program and the next tile, or the next program and a tile, one follows the other.
    return tile, tl.where(is_whole, 0, low), tl.where(is_whole, STEPS, high), program + left


@triton.jit
def part_factors(
    source_RS, result, R, S, width, second,
    TURNED: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Round a float32 matrix to 11 bits; the `second` part holds, that many numbers on, the rest.

    The parts are turned to (S, width) if asked for, where zeros follow R numbers; else (R, S).
    """
    s_S = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    r_R = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    real_RS = (r_R < R)[:, None] & (s_S < S)[None, :]
    x_RS = tl.load(source_RS + (r_R * S)[:, None] + s_S[None, :], mask=real_RS, other=0.0)
    high_RS = ((x_RS.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    # A number that is none stays so.
    high_RS = tl.where(x_RS == x_RS, high_RS, x_RS)
    low_RS = x_RS - high_RS
    if TURNED:
        at_SR = (s_S * width)[:, None] + r_R[None, :]
        there_SR = (s_S < S)[:, None] & (r_R < width)[None, :]
        tl.store(result + at_SR, tl.trans(high_RS), mask=there_SR)
        if PARTS == 2:
            tl.store(result + second + at_SR, tl.trans(low_RS), mask=there_SR)
    else:
        at_RS = (r_R * S)[:, None] + s_S[None, :]
        tl.store(result + at_RS, high_RS, mask=real_RS)
        if PARTS == 2:
            tl.store(result + second + at_RS, low_RS, mask=real_RS)


@triton.jit
def _add_product(
    sums_MN, left, m, left_k, left_rows, right, n, right_k, right_rows, PARTS: tl.constexpr
):
    """Add the product of M rows of `left` from `m` on and N rows of `right`, from K columns on.

    Tensor cores cut the sums that they add to; with two parts, whose product is meant to be exact,
    they add few numbers. The product of both second parts is below rounding.
    """
    left_MK = left.load([m, left_k])
    right_KN = tl.trans(right.load([n, right_k]))
    if PARTS == 2:
        rest_MK = left.load([m + left_rows, left_k])
        rest_KN = tl.trans(right.load([n + right_rows, right_k]))
        step_MN = tl.dot(rest_MK, right_KN, input_precision="tf32")
        step_MN = tl.dot(left_MK, rest_KN, step_MN, input_precision="tf32")
        step_MN = tl.dot(left_MK, right_KN, step_MN, input_precision="tf32")
        sums_MN += step_MN
    else:
        sums_MN = tl.dot(left_MK, right_KN, sums_MN, input_precision="tf32")
    return sums_MN


@triton.jit
def convolve_tiles(
    images_BHWC, weight_OkkC, result_BYXO, parts_SMN, B, whole, share, steps_left,
    W: tl.constexpr, C: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, O: tl.constexpr,
    HWC: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The convolution: a tile is of M images and N channels at one place."""
    program = tl.program_id(0)
    STEPS: tl.constexpr = SIDE * SIDE * (C // K)
    TILES: tl.constexpr = Y * X * (O // N)
    for item in range(_items(program, whole, share, steps_left, STEPS)):
        tile, low, high, slot = _item(item, program, whole, share, steps_left, STEPS)
        b = (tile // TILES) * M
        place = (tile % TILES) // (O // N)
        o = (tile % (O // N)) * N
        corner = ((place // X) * W + place % X) * STRIDE
        sums_MN = tl.zeros([M, N], tl.float32)
        for step in range(low, high):
            under = step // (C // K)
            c = (step % (C // K)) * K
            pixel = corner + (under // SIDE) * W + under % SIDE
            sums_MN = _add_product(
                sums_MN, images_BHWC, b, pixel * C + c, B, weight_OkkC, o, step * K, O, PARTS
            )
        if item < whole:
            _store(result_BYXO, sums_MN, b, place * O + o, B, Y * X * O, M, N, MASKED)
        else:
            _store(parts_SMN, sums_MN, slot * M, 0, B, N, M, N, False)


@triton.jit
def weight_slopes(
    images, slopes, result_OkkC, parts_SMN, B, whole, share, steps_left,
    W: tl.constexpr, C: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, O: tl.constexpr,
    HWC: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr, BLOCKS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradient of the weight: a tile is of M outputs and N inputs at one place of the kernel.

    BLOCKS are those of K images. Factors in parts are turned: (H, W, C, B) and (Y, X, O, B).
    """
    program = tl.program_id(0)
    STEPS: tl.constexpr = BLOCKS * Y * X
    TILES: tl.constexpr = SIDE * SIDE * (C // N)
    for item in range(_items(program, whole, share, steps_left, STEPS)):
        tile, low, high, slot = _item(item, program, whole, share, steps_left, STEPS)
        o = (tile // TILES) * M
        under = (tile % TILES) // (C // N)
        c = (tile % (C // N)) * N
        corner = (under // SIDE) * W + under % SIDE
        sums_MN = tl.zeros([M, N], tl.float32)
        for step in range(low, high):
            b = (step // (Y * X)) * K
            place = step % (Y * X)
            pixel = corner + ((place // X) * W + place % X) * STRIDE
            if PARTS == 0:
                g_KM = slopes.load([b, place * O + o])
                x_KN = images.load([b, pixel * C + c])
                sums_MN = tl.dot(tl.trans(g_KM), x_KN, sums_MN)
            else:
                m, n = place * O + o, pixel * C + c
                sums_MN = _add_product(sums_MN, slopes, m, b, Y * X * O, images, n, b, HWC, PARTS)
        if item < whole:
            _store(result_OkkC, sums_MN, o, under * C + c, O, SIDE * SIDE * C, M, N, False)
        else:
            _store(parts_SMN, sums_MN, slot * M, 0, O, N, M, N, False)


@triton.jit
def image_slopes(
    slopes_BYXO, weight, order_P, result_BHWC, B,
    W: tl.constexpr, C: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, O: tl.constexpr,
    HWC: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradient of the images: a tile is of M images and N channels at one pixel.

    Only the places that see the pixel are added over. `order_P` are the pixels, those that most
    places see first, lest the others wait for them in the end. The weight is (O, k, k, C), or, in
    parts, turned: (k, k, C, O).
    """
    BLOCKS: tl.constexpr = C // N
    blocks = tl.cdiv(B, M) * BLOCKS
    pixel = tl.load(order_P + tl.program_id(0) // blocks)
    b = (tl.program_id(0) % blocks) // BLOCKS * M
    c = (tl.program_id(0) % BLOCKS) * N
    row, column = pixel // W, pixel % W
    y = tl.maximum(row - SIDE + STRIDE, 0) // STRIDE
    x = tl.maximum(column - SIDE + STRIDE, 0) // STRIDE
    rows = tl.maximum(tl.minimum(row // STRIDE, Y - 1) - y + 1, 0)
    columns = tl.maximum(tl.minimum(column // STRIDE, X - 1) - x + 1, 0)
    sums_MN = tl.zeros([M, N], tl.float32)
    for step in range(rows * columns * (O // K)):
        seen = step // (O // K)
        o = (step % (O // K)) * K
        y_seen = y + seen // columns
        x_seen = x + seen % columns
        under = (row - y_seen * STRIDE) * SIDE + column - x_seen * STRIDE
        k, n = (y_seen * X + x_seen) * O + o, under * C + c
        if PARTS == 0:
            sums_MN = tl.dot(slopes_BYXO.load([b, k]), weight.load([o, n]), sums_MN)
        else:
            sums_MN = _add_product(
                sums_MN, slopes_BYXO, b, k, B, weight, n, o, SIDE * SIDE * C, PARTS
            )
    _store(result_BHWC, sums_MN, b, pixel * C + c, B, HWC, M, N, MASKED)


@triton.jit
def add_parts(
    parts_SMN, result, rows, first_tile, share,
    WIDTH: tl.constexpr, STEPS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Sum up the parts of tiles from `first_tile` on of a result of rows of WIDTH numbers."""
    left = tl.program_id(0)
    row = tl.program_id(1) * ROWS
    sums_RN = tl.zeros([ROWS, N], tl.float32)
    for program in range(left * STEPS // share, ((left + 1) * STEPS - 1) // share + 1):
        r_R = (program + left) * M + row + tl.arange(0, ROWS)
        sums_RN += tl.load(parts_SMN + (r_R * N)[:, None] + tl.arange(0, N)[None, :])
    tile = first_tile + left
    row += tile // (WIDTH // N) * M
    _store(result, sums_RN, row, tile % (WIDTH // N) * N, rows, WIDTH, ROWS, N, MASKED)
