"""Tiles of votes inside compiled loops: a vote is made in a register and used there.

Shape suffixes: see `capsrepro.models.votes`; S is N filled up to whole vectors.

One vector holds 16 children (8 in float64) of one place, type, row and column: only the sums over
children are sums within a vector, and those are left to the end. All rows and a few columns of a
parent are a tile and made at once, since they share what they load; a cell is one of its rows and
one of these columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch

from capsrepro.models.cpu.vector_code import Array, Index, Variable, Vector, VectorCode

# Places that one transform serves before the next is fetched: their poses and the matrix stay in
# the cache (docs/performance.md).
_PLACES = 4

# Columns made at once where they divide the pose: more would not fit into the registers.
_COLUMNS = 4

FACTORS = "patches_TRKS", "transforms_JKCS", "offsets_RCS"
"""The arrays that every kernel takes after its own."""

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


class Tiles:
    """The code of one kernel, and what all have in common: loops, votes and gradients.

    Args:
        dtype: float32 or float64.
        pose: Shape of the poses.
        names: The kernel's own arrays, in order; what follows the last underscore is their shape.

    Attributes:
        cells: Rows and columns of one tile.
        zero: 0 in all lanes.
    """

    def __init__(self, dtype: torch.dtype, pose: Pose, names: tuple[str, ...]) -> None:
        names = *names, *FACTORS
        self.code = VectorCode(dtype, [*names], ["J", "S", "first", "last"])
        self.pose = pose
        self.cells = [(r, c) for r in range(pose.rows) for c in range(pose.width)]
        # How long the first axis is, no place in memory depends on.
        sizes = {"T": 0, "R": pose.rows, "K": pose.inner, "C": pose.columns}
        sizes |= {"X": 0, "J": self.code.arguments["J"], "S": self.code.arguments["S"]}
        self.arrays = self.code.arrays(names, sizes)
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
        poses = {(r, k): self["patches_TRKS"].load(t, r, k, n) for r in range(R) for k in range(K)}
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
        """W = share · factor of the child."""
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
