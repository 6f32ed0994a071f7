"""Triton kernels that squash the maps of a convolution to capsules; `primary_cuda` starts them.

A program takes on one type of capsules at some places of the batch.

Shape suffixes:
    R  places (b, row, column) of a program, of B·P of the batch
    E  dimensions of a capsule      I  capsules of an image: types · P places
    O  channels: types · E          C  chunks of places, each of one program
"""

from __future__ import annotations

import triton
import triton.language as tl

from capsrepro.models.gpu.squash_kernels import squashed, unsquashed


@triton.jit
def _addresses(
    per_place, per_channel, P: tl.constexpr, TYPES: tl.constexpr, E: tl.constexpr, R: tl.constexpr
):
    """Of a program's numbers among the maps and among the capsules."""
    kind = tl.program_id(1)
    r_R = tl.program_id(0) * R + tl.arange(0, R)
    e_E = tl.arange(0, E)
    b_R, p_R = r_R // P, r_R % P
    image_R = b_R * (P * TYPES * E)
    maps_RE = (image_R + p_R * per_place)[:, None] + ((kind * E + e_E) * per_channel)[None, :]
    capsules_RE = (image_R + kind * P + p_R)[:, None] + (e_E * (TYPES * P))[None, :]
    return maps_RE, capsules_RE, kind * E + e_E, r_R


@triton.jit
def squash_maps(
    maps_BOP,
    bias_O,
    capsules_BEI,
    rows,
    per_place,
    per_channel,
    scale,
    P: tl.constexpr,
    TYPES: tl.constexpr,
    E: tl.constexpr,
    R: tl.constexpr,
):
    """Capsules: the squash of scale · maps + bias along each type's E channels."""
    maps_RE, capsules_RE, o_E, r_R = _addresses(per_place, per_channel, P, TYPES, E, R)
    real_RE = (r_R < rows)[:, None]
    s_RE = tl.load(maps_BOP + maps_RE, mask=real_RE, other=0.0).to(capsules_BEI.dtype.element_ty)
    s_RE = s_RE * scale + tl.load(bias_O + o_E)[None, :]
    tl.store(capsules_BEI + capsules_RE, squashed(s_RE), mask=real_RE)


@triton.jit
def unsquash_maps(
    maps_BOP,
    bias_O,
    slopes_BEI,
    written_BOP,
    partial_CO,
    rows,
    per_place,
    per_channel,
    scale,
    P: tl.constexpr,
    TYPES: tl.constexpr,
    E: tl.constexpr,
    R: tl.constexpr,
):
    """Gradient of the maps from that of the capsules, and its share in that of the bias."""
    maps_RE, capsules_RE, o_E, r_R = _addresses(per_place, per_channel, P, TYPES, E, R)
    real_RE = (r_R < rows)[:, None]
    g_RE = tl.load(slopes_BEI + capsules_RE, mask=real_RE, other=0.0)
    s_RE = tl.load(maps_BOP + maps_RE, mask=real_RE, other=0.0).to(g_RE.dtype)
    s_RE = s_RE * scale + tl.load(bias_O + o_E)[None, :]
    slopes_RE = unsquashed(s_RE, g_RE)
    scaled_RE = (slopes_RE * scale).to(written_BOP.dtype.element_ty)
    tl.store(written_BOP + maps_RE, scaled_RE, mask=real_RE)
    tl.store(partial_CO + tl.program_id(0) * (TYPES * E) + o_E, tl.sum(slopes_RE, 0))
