"""The four sums over votes and their gradients as compiled loops.

Shape suffixes: see `capsrepro.models.votes`; S is N filled up to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from capsrepro.models.cpu.vote_tiles import Pose, Tiles


@cache
def kernel(name: str, dtype: torch.dtype, pose: Pose) -> Callable[..., None]:
    """One of `KERNELS`, for the places from `first` to below `last` of T.

    It takes the addresses of its arrays in the order of `KERNELS`, then of those of
    `vote_tiles.FACTORS`, then J, S, first and last.
    """
    emit, names = KERNELS[name]
    tiles = Tiles(dtype, pose, names)
    emit(tiles)
    return tiles.code.compiled()


def _moments(tiles: Tiles) -> None:
    """Σ w, means and variances; the votes of a tile are kept until its means are known."""
    code, cells = tiles.code, list(enumerate(tiles.cells))
    # As the tile makes them: all its cells for one vector of children, then for the next.
    kept = code.array("kept_X", 0, len(cells))
    one = code.constant(1)
    with tiles.parents() as (t, j, column):
        mass, sums = code.variable(tiles.zero), tiles.sums()
        with tiles.children() as n:
            votes, _, _ = tiles.votes(t, j, column, n)
            weights = tiles.weights(t, j, n)
            mass.value += weights
            for place, cell in cells:
                kept.store(votes[cell], n, place * code.lanes)
                sums[cell].value += weights * votes[cell]
        total = code.total(mass.value)
        share = one / (total + tiles["epsilon_"].spread())
        means = {cell: code.total(sums[cell].value) * share for cell in tiles.cells}
        squares = tiles.sums()
        with tiles.children() as n:
            weights = tiles.weights(t, j, n)
            for place, cell in cells:
                off = kept.load(n, place * code.lanes) - means[cell]
                squares[cell].value += weights * off * off
        variances = {cell: code.total(squares[cell].value) * share for cell in tiles.cells}
        tiles["mass_TJ"].put(total, t, j)
        tiles.put("mean_TRJC", means, t, j, column)
        tiles.put("variance_TRJC", variances, t, j, column)


def _moments_gradient(tiles: Tiles) -> None:
    """∂w = base + Σ_rc D (h + D k),  ∂V = w (h + 2 D k),  D = V − mean."""
    code = tiles.code
    with tiles.parents() as tile:
        t, j, column = tile
        means, k, h = (tiles.of_parents(name, *tile) for name in ("mean_TRJC", "k_TRJC", "h_TRJC"))
        base = tiles["base_TJ"].spread(t, j)
        with tiles.children() as n:
            votes, poses, matrix = tiles.votes(*tile, n)
            weights = tiles.weights(t, j, n)
            d_weights = code.either(column, base, tiles.zero)
            d_votes = {}
            for cell in tiles.cells:
                off = votes[cell] - means[cell]
                bent = off * k[cell]
                slope = bent + h[cell]
                d_weights += off * slope
                d_votes[cell] = weights * (slope + bent)
            tiles.add_weights_gradient(d_weights, *tile, n)
            tiles.add_gradients(d_votes, poses, matrix, *tile, n)


def _distances(tiles: Tiles) -> None:
    """Σ_rc precision · (V − centre)²."""
    code = tiles.code
    with tiles.parents() as tile:
        t, j, column = tile
        centres = tiles.of_parents("centres_TRJC", *tile)
        precisions = tiles.of_parents("precisions_TRJC", *tile)
        with tiles.children() as n:
            votes, _, _ = tiles.votes(*tile, n)
            distances = code.either(column, tiles.zero, tiles["distances_TJS"].load(t, j, n))
            for cell in tiles.cells:
                off = votes[cell] - centres[cell]
                distances += precisions[cell] * off * off
            tiles["distances_TJS"].store(distances, t, j, n)


def _distances_gradient(tiles: Tiles) -> None:
    """∂V = slope · D g with D = V − centre, and the sums Σ_n D g and Σ_n D² g."""
    code = tiles.code
    with tiles.parents() as tile:
        t, j, _ = tile
        centres = tiles.of_parents("centres_TRJC", *tile)
        slopes = tiles.of_parents("slopes_TRJC", *tile)
        pulls, squares = tiles.sums(), tiles.sums()
        with tiles.children() as n:
            votes, poses, matrix = tiles.votes(*tile, n)
            d_distances = tiles["d_distances_TJS"].load(t, j, n)
            d_votes = {}
            for cell in tiles.cells:
                off = votes[cell] - centres[cell]
                pull = d_distances * off
                pulls[cell].value += pull
                squares[cell].value += pull * off
                d_votes[cell] = slopes[cell] * pull
            tiles.add_gradients(d_votes, poses, matrix, *tile, n)
        for name, sums in (("pulls_TRJC", pulls), ("squares_TRJC", squares)):
            tiles.put(name, {cell: code.total(x.value) for cell, x in sums.items()}, *tile)


KERNELS: dict[str, tuple[Callable[[Tiles], None], tuple[str, ...]]] = {
    "moments": (
        _moments,
        (
            "kept_X",
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
"""What writes each one's code, and its arrays; X are the votes of one tile for all children."""
