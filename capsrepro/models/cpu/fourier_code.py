"""Transforms between pixels and the amplitudes of tiles, and back, as compiled loops over channels.

Shape suffixes: N images, kernels or results; V, U tiles down and across; F numbers kept of a tile;
Z channels of all phases; H, W rows and columns of pixels; C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from capsrepro.models.cpu.fourier_amplitudes import (
    Transform,
    Wave,
    height,
    kept,
    pairs,
    real_frequencies,
)
from capsrepro.models.cpu.vector_code import Index, Vector, VectorCode, lanes_of


@cache
def kernel(
    dtype: torch.dtype, transform: Transform, transposed: bool, adds: bool
) -> Callable[..., None]:
    """Loops over the images from `first` to below `last`.

    They take the addresses of pixels_NHWC, of numbers_FNVUZ and of what `scratch` asks for; then
    first, last, N, H, W, C, how many numbers a pixel is from the next, V, U, and how many pixels of
    a phase a tile is from the next.

    Args:
        dtype: Of all arrays.
        transform: Which.
        transposed: From numbers to pixels.
        adds: To the pixels that are there, as tiles overlap.
    """
    loops = _Loops(dtype, transform)
    if transposed:
        loops.transposed(adds)
    else:
        loops.direct()
    return loops.code.compiled(level=0)


def scratch(dtype: torch.dtype, transform: Transform, channels: int) -> tuple[int, int]:
    """Sizes of the two arrays that one call of the loops needs for itself."""
    lanes = lanes_of(dtype)
    near = kept(transform.period) * (transform.stride**2 * channels + lanes)
    return near, transform.period * transform.size * lanes


_At = Callable[[Index, Index], tuple[Index, ...]]


class _Loops:
    """Code for one tile after the other, in which for one phase and vector of channels."""

    def __init__(self, dtype: torch.dtype, transform: Transform) -> None:
        names = ["first", "last", "N", "H", "W", "C", "apart", "V", "U", "step"]
        self.code = code = VectorCode(dtype, ["pixels", "numbers", "near", "sums"], names)
        self.transform, self.places = transform, range(transform.size)
        real, complex_ = (of(transform.period) for of in (real_frequencies, pairs))
        self.waves: list[Wave] = [(k, math.cos) for k in (*real, *complex_)]
        self.waves += [(k, math.sin) for k in complex_]
        size, self.rows = code.arguments, kept(transform.period)
        self.Z = code.times(size["C"], transform.stride**2)
        self.pixels = code.array("pixels", 0, size["H"], size["W"], size["apart"])
        self.numbers = code.array("numbers", 0, size["N"], size["V"], size["U"], self.Z)
        # The numbers of one tile: rows a power of two apart would share lines of the cache.
        self.near = code.array("near", 0, code.plus(self.Z, code.lanes))
        # Of pixels, along their rows.
        self.sums = code.array("sums", 0, transform.size, code.lanes)

    def direct(self) -> None:
        """Pixels to numbers: sums along rows, then along columns."""
        code = self.code
        with self._tiles() as (n, v, u):
            with self._vectors(n, v, u) as (pixel, z):
                with code.loop(0, self.transform.size) as y:
                    row = [self.pixels.load(*pixel(y, x)) for x in self.places]
                    for at, wave in enumerate(self.waves):
                        self.sums.store(self._over(wave, row), at, y, 0)
                for columns, first in self._columns():
                    loaded = [[self.sums.load(at, y, 0) for y in self.places] for at in columns]
                    terms = {
                        (wave, side): self._over(wave, column)
                        for side, column in enumerate(loaded)
                        for wave in self.waves
                    }
                    for at, form in enumerate(self.transform.forms(len(columns))):
                        value = self._sum((factor, terms[term]) for term, factor in form.items())
                        self.near.store(value, code.plus(first, at), z)
            with self._rows() as (f, z):
                self.numbers.store(self.near.load(f, z), f, n, v, u, z)

    def transposed(self, adds: bool) -> None:
        """Numbers to pixels: the same factors, from each sum to what it was made of."""
        code = self.code
        with self._tiles() as (n, v, u):
            with self._rows() as (f, z):
                self.near.store(self.numbers.load(f, n, v, u, z), f, z)
            with self._vectors(n, v, u) as (pixel, z):
                for columns, first in self._columns():
                    self._to_sums(columns, first, z)
                with code.loop(0, self.transform.size) as y:
                    sums = [(w, self.sums.load(at, y, 0)) for at, w in enumerate(self.waves)]
                    for x in self.places:
                        value = self._at(x, sums)
                        if adds:
                            value += self.pixels.load(*pixel(y, x))
                        self.pixels.store(value, *pixel(y, x))

    def _to_sums(self, columns: list[Index], first: Index, z: Index) -> None:
        forms = list(enumerate(self.transform.forms(len(columns))))
        given = [self.near.load(self.code.plus(first, at), z) for at, _ in forms]
        for side, column in enumerate(columns):
            terms = []
            for wave in self.waves:
                parts = [(form.get((wave, side), 0), given[at]) for at, form in forms]
                terms.append((wave, self._sum(parts)))
            for y in self.places:
                self.sums.store(self._at(y, terms), column, y, 0)

    @contextmanager
    def _tiles(self) -> Iterator[tuple[Index, Index, Index]]:
        size = self.code.arguments
        with (
            self.code.loop(size["first"], size["last"]) as n,
            self.code.loop(0, size["V"]) as v,
            self.code.loop(0, size["U"]) as u,
        ):
            yield n, v, u

    @contextmanager
    def _vectors(self, n: Index, v: Index, u: Index) -> Iterator[tuple[_At, Index]]:
        """Where pixel (y, x) of each phase and vector of channels is, and its place in Z."""
        code, size, stride = self.code, self.code.arguments, self.transform.stride
        with (
            code.loop(0, stride) as i,
            code.loop(0, stride) as j,
            code.loop(0, size["C"], code.lanes) as c,
        ):
            step = code.times(size["step"], stride)
            top, left = (code.plus(code.times(a, step), b) for a, b in ((v, i), (u, j)))
            phase = code.plus(code.times(i, stride), j)

            def pixel(y: Index, x: Index) -> tuple[Index, ...]:
                down, across = (code.times(at, stride) for at in (y, x))
                return n, code.plus(top, down), code.plus(left, across), c

            yield pixel, code.plus(code.times(phase, size["C"]), c)

    @contextmanager
    def _rows(self) -> Iterator[tuple[Index, Index]]:
        """Each vector of a tile's numbers."""
        with self.code.loop(0, self.rows) as f, self.code.loop(0, self.Z, self.code.lanes) as z:
            yield f, z

    def _columns(self) -> Iterator[tuple[list[Index], Index]]:
        """Waves of rows whose sums belong together, and the first number that is kept of them."""
        real, complex_ = (len(f(self.transform.period)) for f in (real_frequencies, pairs))
        alone, together = (len(self.transform.forms(columns)) for columns in (1, 2))
        with self.code.loop(0, real) as k:
            yield [k], self.code.times(k, alone)
        with self.code.loop(0, complex_) as k:
            both = [self.code.plus(k, at) for at in (real, real + complex_)]
            yield both, self.code.plus(self.code.times(k, together), real * alone)

    def _over(self, wave: Wave, pixels: list[Vector]) -> Vector:
        """Sum of pixels times a wave."""
        period = self.transform.period
        return self._sum((height(wave, at, period), pixel) for at, pixel in enumerate(pixels))

    def _at(self, place: int, sums: Iterable[tuple[Wave, Vector]]) -> Vector:
        """What waves add up to at a place."""
        period = self.transform.period
        return self._sum((height(wave, place, period), factor) for wave, factor in sums)

    def _sum(self, parts: Iterable[tuple[float, Vector]]) -> Vector:
        """Of vectors times numbers; each addition is rounded once."""
        total = None
        for factor, vector in parts:
            if factor == 0:
                continue
            term = vector if factor == 1 else self.code.constant(factor) * vector
            total = term if total is None else total + term
        return self.code.constant(0) if total is None else total
