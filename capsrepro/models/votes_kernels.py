"""The four sums over votes as machine code: a vote is made in a register and used there.

Shape suffixes: see `capsrepro.models.votes`; S is N filled up to whole vectors.

One vector holds 16 children (8 in float64) of one place, type, row and column: only the sums over
children are sums within a vector, and those are left to the end. All rows and a few columns of a
parent are made at once, since they share what they load. A cell is a row and one of these columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import NamedTuple

import torch

from capsrepro.models.vector_code import Array, Index, Variable, Vector, VectorCode

# Places that one transform serves before the next is fetched: their poses and the matrix stay in
# the cache (docs/performance.md).
_PLACES = 8

# Columns made at once where they divide the pose: more would not fit into the registers.
_COLUMNS = 4

Cells = dict[tuple[int, int], Vector]
"""A vector for each row and column."""


class Pose(NamedTuple):
    """What the code is made for; places, children and types may be any number.

    Attributes:
        rows: R.
        inner: K.
        columns: C.
        has_offsets: Whether something is added to the votes.
    """

    rows: int
    inner: int
    columns: int
    has_offsets: bool

    @property
    def width(self) -> int:
        """Columns made at once."""
        return math.gcd(self.columns, _COLUMNS)


@cache
def kernel(name: str, dtype: torch.dtype, pose: Pose) -> Callable[..., None]:
    """One of `KERNELS`, for the places from `first` to below `last` of T.

    It takes the addresses of its arrays in the order of `KERNELS`, then of patches_TRKS,
    transforms_JKCS and offsets_RCS, then J, S, first and last.
    """
    emit, names = KERNELS[name]
    parts = _Parts(dtype, pose, names)
    emit(parts)
    return parts.code.compiled()


class _Parts:
    """What the four have in common: arrays, the order of the loops, the votes, the gradients."""

    def __init__(self, dtype: torch.dtype, pose: Pose, names: tuple[str, ...]) -> None:
        names = *names, "patches_TRKS", "transforms_JKCS", "offsets_RCS"
        self.code = VectorCode(dtype, [*names], ["J", "S", "first", "last"])
        self.pose = pose
        self.cells = [(r, c) for r in range(pose.rows) for c in range(pose.width)]
        sizes = {"T": 0, "R": pose.rows, "K": pose.inner, "C": pose.columns}
        sizes |= {"J": self.code.arguments["J"], "S": self.code.arguments["S"]}
        self.arrays = {
            name: self.code.array(name, *(sizes[letter] for letter in name.rpartition("_")[2]))
            for name in names
        }
        self.zero = self.code.constant(0)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    @contextmanager
    def parents(self) -> Iterator[tuple[Index, Index, Index]]:
        """Place, type and first column of each tile of parents."""
        code, pose = self.code, self.pose
        last = code.arguments["last"]
        with code.loop(code.arguments["first"], last, _PLACES) as start:
            stop = code.least(code.plus(start, _PLACES), last)
            with (
                code.loop(0, code.arguments["J"]) as j,
                code.loop(0, pose.columns, pose.width) as column,
                code.loop(start, stop) as t,
            ):
                yield t, j, column

    def children(self) -> AbstractContextManager[Index]:
        """The first child of each vector."""
        return self.code.loop(0, self.code.arguments["S"], self.code.lanes)

    def of_parents(self, name: str, t: Index, j: Index, column: Index) -> Cells:
        """Numbers of the tile's cells, each in all lanes."""
        array_TRJC, plus = self[name], self.code.plus
        return {(r, c): array_TRJC.spread(t, r, j, plus(column, c)) for r, c in self.cells}

    def sums(self) -> dict[tuple[int, int], Variable]:
        """A sum for each cell, 0 so far."""
        return {cell: self.code.variable(self.zero) for cell in self.cells}

    def votes(self, t: Index, j: Index, column: Index, n: Index) -> tuple[Cells, Cells, Cells]:
        """V = M W + offset of the tile's cells, with the M by (r, k) and the W by (k, c)."""
        R, K, _, has_offsets = self.pose
        columns = [self.code.plus(column, c) for c in range(self.pose.width)]
        poses = {
            (r, k): self["patches_TRKS"].load(t, r, k, n) for r in range(R) for k in range(K)
        }
        matrix = {
            (k, c): self["transforms_JKCS"].load(j, k, at, n)
            for k in range(K)
            for c, at in enumerate(columns)
        }
        votes = {}
        for r, c in self.cells:
            products = [poses[r, k] * matrix[k, c] for k in range(K)]
            if has_offsets:
                products.insert(0, self["offsets_RCS"].load(r, columns[c], n))
            votes[r, c] = sum(products[1:], products[0])
        return votes, poses, matrix

    def weights(self, t: Index, j: Index, n: Index) -> Vector:
        """w = share · factor of the child."""
        return self["shares_TJS"].load(t, j, n) * self["factors_TS"].load(t, n)

    def put(self, name: str, sums: Cells, t: Index, j: Index, column: Index) -> None:
        """Write one number for each of the tile's cells."""
        for (r, c), total in sums.items():
            self[name].put(total, t, r, j, self.code.plus(column, c))

    def add_weights_gradient(
        self, d_weights: Vector, t: Index, j: Index, column: Index, n: Index
    ) -> None:
        """∂share += factor ∂w, from 0 at the first columns, and ∂factor += Σ_j share ∂w."""
        d_shares = self.code.either(column, self.zero, self["d_shares_TJS"].load(t, j, n))
        d_shares += self["factors_TS"].load(t, n) * d_weights
        self["d_shares_TJS"].store(d_shares, t, j, n)
        d_factors = self["d_factors_TS"].load(t, n)
        d_factors += self["shares_TJS"].load(t, j, n) * d_weights
        self["d_factors_TS"].store(d_factors, t, n)

    def add_gradients(
        self,
        d_votes: Cells,
        poses: Cells,
        matrix: Cells,
        t: Index,
        j: Index,
        column: Index,
        n: Index,
    ) -> None:
        """∂W += Σ_r M ∂V and ∂M += Σ_c ∂V W."""
        columns = [self.code.plus(column, c) for c in range(self.pose.width)]
        for k, c in matrix:
            d_matrix = self["d_transforms_JKCS"].load(j, k, columns[c], n)
            for r in range(self.pose.rows):
                d_matrix += poses[r, k] * d_votes[r, c]
            self["d_transforms_JKCS"].store(d_matrix, j, k, columns[c], n)
        for r, k in poses:
            d_pose = self["d_patches_TRKS"].load(t, r, k, n)
            for c in range(self.pose.width):
                d_pose += d_votes[r, c] * matrix[k, c]
            self["d_patches_TRKS"].store(d_pose, t, r, k, n)


def _moments(parts: _Parts) -> None:
    """Σ w, means and variances; the votes of a tile are kept until its means are known."""
    code, cells = parts.code, list(enumerate(parts.cells))
    # As the tile makes them: all its cells for one vector of children, then for the next.
    kept = code.array("kept_S", 0, len(cells))
    one = code.constant(1)
    with parts.parents() as (t, j, column):
        mass, sums = code.variable(parts.zero), parts.sums()
        with parts.children() as n:
            votes, _, _ = parts.votes(t, j, column, n)
            weights = parts.weights(t, j, n)
            mass.value += weights
            for place, cell in cells:
                kept.store(votes[cell], n, place * code.lanes)
                sums[cell].value += weights * votes[cell]
        total = code.total(mass.value)
        share = one / (total + parts["epsilon_"].spread())
        means = {cell: code.total(sums[cell].value) * share for cell in parts.cells}
        squares = parts.sums()
        with parts.children() as n:
            weights = parts.weights(t, j, n)
            for place, cell in cells:
                off = kept.load(n, place * code.lanes) - means[cell]
                squares[cell].value += weights * off * off
        variances = {cell: code.total(squares[cell].value) * share for cell in parts.cells}
        parts["mass_TJ"].put(total, t, j)
        parts.put("mean_TRJC", means, t, j, column)
        parts.put("variance_TRJC", variances, t, j, column)


def _moments_gradient(parts: _Parts) -> None:
    """∂w = base + Σ_rc D (h + D k),  ∂V = w (h + 2 D k),  D = V − mean."""
    code = parts.code
    with parts.parents() as tile:
        t, j, column = tile
        means, k, h = (parts.of_parents(name, *tile) for name in ("mean_TRJC", "k_TRJC", "h_TRJC"))
        base = parts["base_TJ"].spread(t, j)
        with parts.children() as n:
            votes, poses, matrix = parts.votes(*tile, n)
            weights = parts.weights(t, j, n)
            d_weights = code.either(column, base, parts.zero)
            d_votes = {}
            for cell in parts.cells:
                off = votes[cell] - means[cell]
                bent = off * k[cell]
                slope = bent + h[cell]
                d_weights += off * slope
                d_votes[cell] = weights * (slope + bent)
            parts.add_weights_gradient(d_weights, *tile, n)
            parts.add_gradients(d_votes, poses, matrix, *tile, n)


def _distances(parts: _Parts) -> None:
    """Σ_rc precision · (V − centre)²."""
    code = parts.code
    with parts.parents() as tile:
        t, j, column = tile
        centres = parts.of_parents("centres_TRJC", *tile)
        precisions = parts.of_parents("precisions_TRJC", *tile)
        with parts.children() as n:
            votes, _, _ = parts.votes(*tile, n)
            distances = code.either(column, parts.zero, parts["distances_TJS"].load(t, j, n))
            for cell in parts.cells:
                off = votes[cell] - centres[cell]
                distances += precisions[cell] * off * off
            parts["distances_TJS"].store(distances, t, j, n)


def _distances_gradient(parts: _Parts) -> None:
    """∂V = slope · D g with D = V − centre, and the sums Σ_n D g and Σ_n D² g."""
    code = parts.code
    with parts.parents() as tile:
        t, j, column = tile
        centres = parts.of_parents("centres_TRJC", *tile)
        slopes = parts.of_parents("slopes_TRJC", *tile)
        pulls, squares = parts.sums(), parts.sums()
        with parts.children() as n:
            votes, poses, matrix = parts.votes(*tile, n)
            d_distances = parts["d_distances_TJS"].load(t, j, n)
            d_votes = {}
            for cell in parts.cells:
                off = votes[cell] - centres[cell]
                pull = d_distances * off
                pulls[cell].value += pull
                squares[cell].value += pull * off
                d_votes[cell] = slopes[cell] * pull
            parts.add_gradients(d_votes, poses, matrix, *tile, n)
        for name, sums in (("pulls_TRJC", pulls), ("squares_TRJC", squares)):
            parts.put(name, {cell: code.total(x.value) for cell, x in sums.items()}, *tile)


KERNELS: dict[str, tuple[Callable[[_Parts], None], tuple[str, ...]]] = {
    "moments": (
        _moments,
        (
            "kept_S",
            "mass_TJ",
            "mean_TRJC",
            "variance_TRJC",
            "shares_TJS",
            "factors_TS",
            "epsilon_",
        ),
    ),
    "moments_gradient": (
        _moments_gradient,
        (
            "d_transforms_JKCS",
            "d_patches_TRKS",
            "d_shares_TJS",
            "d_factors_TS",
            "shares_TJS",
            "factors_TS",
            "mean_TRJC",
            "k_TRJC",
            "h_TRJC",
            "base_TJ",
        ),
    ),
    "distances": (_distances, ("distances_TJS", "centres_TRJC", "precisions_TRJC")),
    "distances_gradient": (
        _distances_gradient,
        (
            "d_transforms_JKCS",
            "d_patches_TRKS",
            "pulls_TRJC",
            "squares_TRJC",
            "d_distances_TJS",
            "centres_TRJC",
            "slopes_TRJC",
        ),
    ),
}
"""What writes each one's code, and its arrays."""
