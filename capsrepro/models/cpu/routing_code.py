"""Routing by agreement as compiled loops: a vote is made in a register and used there.

Shape suffixes: I children, J parents, E and D dimensions of their poses; U vectors of V images, the
last one filled up with images at 0; P is D filled up to whole vectors; T iterations.

As a vector holds one number of 16 images (of fewer in float64, or without AVX-512), a number of a
matrix serves them all, and sums over children or dimensions are sums of vectors; only gradients of
matrices add up lanes. What a loop walks through lies in memory in the order of the walk. Stores
stand behind the loads of their loop: a load waits for a store before it whose address ends in the
same twelve bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import NamedTuple

import torch

from capsrepro.models.cpu.vector_code import Array, Index, Variable, Vector, VectorCode


class Pose(NamedTuple):
    """What the code is made for; images, children and parents may be any number.

    Attributes:
        child: E.
        parent: D.
        none_of_the_above: Whether one more parent, whose logit is 0, takes part in the softmax.
    """

    child: int
    parent: int
    none_of_the_above: bool

    def filled(self, lanes: int) -> int:
        """P, where a vector has so many numbers."""
        return -(-self.parent // lanes) * lanes


@cache
def kernel(name: str, dtype: torch.dtype, pose: Pose) -> Callable[..., None]:
    """One of `KERNELS`, for the children from `first` to below `last`.

    It takes the addresses of its arrays in the order of `KERNELS`, then `NUMBERS`.
    """
    emit, names = KERNELS[name]
    loops = _Loops(dtype, pose, names)
    emit(loops)
    return loops.code.compiled()


class _Loops:
    """The code of one kernel, and what all have in common."""

    def __init__(self, dtype: torch.dtype, pose: Pose, names: tuple[str, ...]) -> None:
        self.code = code = VectorCode(dtype, [*names], [*NUMBERS])
        self.pose, D = pose, pose.parent
        sizes = {**code.arguments, "E": pose.child, "D": D, "V": code.lanes}
        sizes["P"] = pose.filled(code.lanes)
        self.arrays = code.arrays(names, sizes)
        self.zero = code.constant(0)
        # Dimensions of a parent that are made at once: there are registers for no more.
        self.parts = [range(d, min(d + code.lanes, D)) for d in range(0, D, code.lanes)]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def children(self) -> AbstractContextManager[Index]:
        """Each child of this part."""
        return self.code.loop(self.code.arguments["first"], self.code.arguments["last"])

    def all_of(self, axis: str) -> AbstractContextManager[Index]:
        """Each index of E or of one of `NUMBERS`."""
        return self.code.loop(0, self.pose.child if axis == "E" else self.code.arguments[axis])

    def add_votes(self, sums: list[Variable], part: range, i: Index, u: Index, j: Index) -> None:
        """Add û = u W in some dimensions."""
        with self.all_of("E") as e:
            child = self["children_IUEV"].load(i, u, e, 0)
            for total, d in zip(sums, part, strict=True):
                total.value += child * self["matrices_IJED"].spread(i, j, e, d)

    def product(self, name: str, i: Index, u: Index, j: Index) -> Vector:
        """û·x, x being an array of parents; û is left in votes_JDV."""
        total = self.zero
        for part in self.parts:
            sums = [self.code.variable(self.zero) for _ in part]
            self.add_votes(sums, part, i, u, j)
            for vote, d in zip(sums, part, strict=True):
                total += vote.value * self[name].load(u, j, d, 0)
            for vote, d in zip(sums, part, strict=True):
                self["votes_JDV"].store(vote.value, j, d, 0)
        return total

    def add_weighted(self, name: str, weight: Vector, u: Index, j: Index) -> None:
        """Add the votes in votes_JDV, weighted, to an array of parents."""
        for part in self.parts:
            sums = [
                self[name].load(u, j, d, 0) + weight * self["votes_JDV"].load(j, d, 0) for d in part
            ]
            for total, d in zip(sums, part, strict=True):
                self[name].store(total, u, j, d, 0)


def _equal_shares(loops: _Loops) -> None:
    """Σ_i û_{j|i}."""
    with loops.all_of("U") as u, loops.all_of("J") as j:
        for part in loops.parts:
            sums = [loops.code.variable(loops.zero) for _ in part]
            with loops.children() as i:
                loops.add_votes(sums, part, i, u, j)
            for total, d in zip(sums, part, strict=True):
                loops["sums_UJDV"].store(total.value, u, j, d, 0)


def _route(loops: _Loops) -> None:
    """c_ij = softmax_j û_{j|i}·V_j and Σ_i c_ij û_{j|i}."""
    code, couplings = loops.code, loops["couplings_IUJV"]
    leaky = loops.pose.none_of_the_above
    with loops.all_of("U") as u, loops.children() as i:
        most = code.variable(code.constant(0 if leaky else torch.finfo(code.dtype).min))
        with loops.all_of("J") as j:
            logit = loops.product("so_far_UJDV", i, u, j)
            couplings.store(logit, i, u, j, 0)
            most.value = code.larger(most.value, logit)
        total = code.variable(code.exp(loops.zero - most.value) if leaky else loops.zero)
        with loops.all_of("J") as j:
            power = code.exp(couplings.load(i, u, j, 0) - most.value)
            couplings.store(power, i, u, j, 0)
            total.value += power
        share = code.constant(1) / total.value
        with loops.all_of("J") as j:
            coupling = couplings.load(i, u, j, 0) * share
            couplings.store(coupling, i, u, j, 0)
            loops.add_weighted("sums_UJDV", coupling, u, j)


def _through_logits(loops: _Loops) -> None:
    """∂b_ij = c_ij (û·∂s_j − Σ_k c_ik û·∂s_k) and ∂V_j = Σ_i ∂b_ij û_{j|i}."""
    code, couplings, d_logits = loops.code, loops["couplings_IUJV"], loops["d_logits_IUJV"]
    with loops.all_of("U") as u, loops.children() as i:
        mean = code.variable(loops.zero)
        with loops.all_of("J") as j:
            slope = loops.product("d_sums_UJDV", i, u, j)
            weighted = slope * couplings.load(i, u, j, 0)
            d_logits.store(weighted, i, u, j, 0)
            mean.value += weighted
        with loops.all_of("J") as j:
            d_logit = d_logits.load(i, u, j, 0) - couplings.load(i, u, j, 0) * mean.value
            d_logits.store(d_logit, i, u, j, 0)
            loops.add_weighted("d_so_far_UJDV", d_logit, u, j)


def _to_factors(loops: _Loops) -> None:
    """∂u = Σ_j W ∂û and ∂W = Σ_images u ∂û."""
    code = loops.code
    with loops.children() as i:
        with loops.all_of("U") as u:
            with loops.all_of("E") as e:
                loops["d_children_IUEV"].store(loops.zero, i, u, e, 0)
            with loops.all_of("J") as j:
                for part in loops.parts:
                    _to_child(loops, part, i, u, j)
        with loops.all_of("M") as j, loops.all_of("E") as e:
            for part in loops.parts:
                sums = [code.variable(loops.zero) for _ in part]
                with loops.all_of("U") as u:
                    child = loops["children_IUEV"].load(i, u, e, 0)
                    for total, d in zip(sums, part, strict=True):
                        total.value += child * loops["d_votes_JUDV"].load(j, u, d, 0)
                totals = code.totals([total.value for total in sums])
                loops["d_matrices_IJEP"].store(totals, i, j, e, part[0])


def _to_child(loops: _Loops, part: range, i: Index, u: Index, j: Index) -> None:
    """∂û = base + Σ_t c ∂s + ∂b V in some dimensions, and what it adds to ∂u."""
    code, d_children = loops.code, loops["d_children_IUEV"]
    sums = [code.variable(loops["base_UJDV"].load(u, j, d, 0)) for d in part]
    for weights, parents in _TERMS:
        with loops.all_of(weights.rpartition("_")[2][0]) as t:
            weight = loops[weights].load(t, i, u, j, 0)
            for total, d in zip(sums, part, strict=True):
                total.value += weight * loops[parents].load(t, u, j, d, 0)
    d_votes = [(d, total.value) for d, total in zip(part, sums, strict=True)]
    with loops.all_of("E") as e:
        d_child = d_children.load(i, u, e, 0)
        for d, d_vote in d_votes:
            d_child += d_vote * loops["matrices_IJED"].spread(i, j, e, d)
        d_children.store(d_child, i, u, e, 0)
    for d, d_vote in d_votes:
        loops["d_votes_JUDV"].store(d_vote, j, u, d, 0)


NUMBERS = "I", "U", "J", "T", "L", "M", "first", "last"
"""Iterations whose couplings have a part in the gradient (T), and whose logits have one (L: none or
all of them); parents whose matrices have a gradient (M: none or all). And the range of children."""

_FACTORS = "children_IUEV", "matrices_IJED"
_TERMS = ("couplings_TIUJV", "d_sums_TUJDV"), ("d_logits_LIUJV", "so_far_LUJDV")

KERNELS: dict[str, tuple[Callable[[_Loops], None], tuple[str, ...]]] = {
    "equal_shares": (_equal_shares, ("sums_UJDV", *_FACTORS)),
    "route": (_route, ("sums_UJDV", "votes_JDV", "couplings_IUJV", "so_far_UJDV", *_FACTORS)),
    "through_logits": (
        _through_logits,
        (
            "d_so_far_UJDV",
            "votes_JDV",
            "d_logits_IUJV",
            "couplings_IUJV",
            "d_sums_UJDV",
            *_FACTORS,
        ),
    ),
    "to_factors": (
        _to_factors,
        (
            "d_votes_JUDV",
            "d_children_IUEV",
            "d_matrices_IJEP",
            "base_UJDV",
            *_TERMS[0],
            *_TERMS[1],
            *_FACTORS,
        ),
    ),
}
"""What writes each one's code, and its arrays."""
