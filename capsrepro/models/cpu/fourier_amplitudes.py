"""Amplitudes of small tiles of pixels, kept so that a product of two takes three of real numbers.

A tile of n × n pixels has an amplitude at each pair of frequencies. To multiply two of them,
(a + ib)(c + id) = (p − r) + i(p + q), takes three products of real numbers,
p = (a + b) c,  q = a (d − c),  r = b (c + d),
so that either side is kept as the three sums that it enters with. With C and S, the sums of pixels
times cosines and sines, an image has a + ib = C − iS. A kernel has c + id = C + iS, conjugated
because networks correlate. p, q and r are given back to the pixels of the result as the transpose
of such sums. Of the amplitudes of real pixels, which come in conjugate pairs, one of each is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Role = Literal["images", "kernels", "results"]

# What is kept of a complex amplitude: multiples of its C and S.
_KEPT: dict[Role, tuple[tuple[int, int], ...]] = {
    "images": ((1, -1), (1, 0), (0, -1)),
    "kernels": ((1, 0), (-1, 1), (1, 1)),
    "results": ((1, -1), (0, -1), (-1, 0)),
}

Wave = tuple[int, Callable[[float], float]]
"""A frequency, and cosine or sine."""

Form = dict[tuple[Wave, int], float]
"""A number that is kept: factors of the sums over a column of pixels times a wave."""


@dataclass(frozen=True)
class Transform:
    """One side of a convolution by products of amplitudes.

    Attributes:
        role: Which side.
        period: n, pixels along a tile.
        size: How many of them there are; the others are 0, or not wanted.
        stride: Pixels are taken apart by their place modulo the stride, rows and columns; each of
            these phases has amplitudes of its own.
    """

    role: Role
    period: int
    size: int
    stride: int

    def forms(self, columns: int) -> list[Form]:
        """What is kept of one column of cosine sums of rows, or of two: cosine and sine sums."""
        # The inverse transform divides by the number of pixels, and counts each pair twice.
        once, twice = (self.period**-2, 2 * self.period**-2) if self.role == "results" else (1, 1)
        multiples = [(twice * c, twice * s) for c, s in _KEPT[self.role]]
        forms: list[Form] = []
        for k in real_frequencies(self.period):
            if columns == 1:
                forms.append({((k, math.cos), 0): once})
            else:
                forms += [{((k, math.cos), 0): c, ((k, math.cos), 1): s} for c, s in multiples]
        for k in pairs(self.period):
            cosine, sine = (k, math.cos), (k, math.sin)
            if columns == 1:
                forms += [{(cosine, 0): c, (sine, 0): s} for c, s in multiples]
                continue
            for sign in (1, -1):
                forms += [
                    {(cosine, 0): c, (sine, 1): -sign * c, (sine, 0): s, (cosine, 1): sign * s}
                    for c, s in multiples
                ]
        return forms


def height(wave: Wave, place: int, period: int) -> float:
    """Of a wave at a pixel; 0 and 1 are exact."""
    frequency, function = wave
    found = function(2 * math.pi * (frequency * place % period) / period)
    return round(found) if abs(found - round(found)) < 1e-15 else found


def real_frequencies(period: int) -> list[int]:
    """Those whose sines are 0 at all pixels."""
    return [0, period // 2] if period % 2 == 0 else [0]


def pairs(period: int) -> list[int]:
    """One frequency of each conjugate pair."""
    return list(range(1, (period + 1) // 2))


def kept(period: int) -> int:
    """How many numbers are kept of a tile: one of a real amplitude, three of a complex one."""
    real, complex_ = len(real_frequencies(period)), len(pairs(period))
    return real**2 + 6 * complex_ * (real + complex_)
