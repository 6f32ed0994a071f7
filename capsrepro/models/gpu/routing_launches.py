"""Starts the kernels of dynamic routing: grids, block sizes and the tensors they write.

Shape suffixes: see `capsrepro.models.routing`; T iterations, C chunks of children.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """What a program of a kernel takes on: at least as many pairs (image, child) as threads.

    With fewer, several threads would read a logit that the first of them replaces by a coupling.

    Attributes:
        images: Images of a tile.
        numbers: Numbers of a tile's children: E · children of a tile.
        warps: Of 32 threads.
        stages: Of the pipeline of loads.
        registers: Most of a thread, so that more programs are under way at once; 0: the compiler's
            choice.
    """

    images: int
    numbers: int
    warps: int
    stages: int = 1
    registers: int = 0


class Blocks(NamedTuple):
    """Of each kernel."""

    route: Block = Block(64, 64, 4, 3)
    children: Block = Block(64, 64, 4, 2, 168)
    transforms: Block = Block(64, 64, 4, 2, 168)


BLOCKS = Blocks()

# What the kernels of the squash take on: rows (b, j) of a program, and chunks added at a time.
_ROWS, _CHUNKS = 2, 128


class Terms(NamedTuple):
    """What the gradient of the votes is made of: Σ_t c^t ds^t + dl^t V^t.

    Attributes:
        couplings: c of all iterations but the first, or of the last alone; shape (T, J, B, I).
        logits_slopes: dl, gradients of the logits, same shape; none if couplings are constants.
        sums_slopes: ds, gradients of the sums, shape (T, B, J, D); one more than couplings if the
            first iteration, whose couplings are equal shares, counts.
        pulls: V, sums of the parents of earlier iterations, shape (T, B, J, D).
    """

    couplings: Tensor
    logits_slopes: Tensor | None
    sums_slopes: Tensor
    pulls: Tensor


class Launcher:
    """Launches the kernels on the children and matrices of one layer."""

    def __init__(
        self, children_BEI: Tensor, transforms_JEID: Tensor, none_of_the_above: bool, blocks: Blocks
    ) -> None:
        # Triton exists on few machines; kernels are loaded where they run.
        from capsrepro.models.gpu import routing_kernels, squash_kernels

        self.kernels: Any = routing_kernels
        self.squashes: Any = squash_kernels
        self.children_BEI, self.transforms_JEID, self.blocks = children_BEI, transforms_JEID, blocks
        self.J, self.E, self.I, self.D = transforms_JEID.shape
        self.B = len(children_BEI)
        self.shape_BJD, self.shape_JBI = (self.B, self.J, self.D), (self.J, self.B, self.I)
        self.chunks = _blocks_of(self.I, blocks.route.numbers // self.E)
        self.none = none_of_the_above

    def _sizes(self, block: Block) -> dict[str, Any]:
        return {
            "J": self.J,
            "E": self.E,
            "D": self.D,
            "BB": block.images,
            "BI": block.numbers // self.E,
            "NONE": self.none,
            "num_warps": block.warps,
            "num_stages": block.stages,
            **({"maxnreg": block.registers} if block.registers else {}),
        }

    def forward(self, pull_BJD: Tensor | None, couplings_JBI: Tensor | None) -> Tensor:
        """Partial sums of an iteration; without a pull the first, with equal couplings."""
        mode = (self.kernels.UNIFORM if pull_BJD is None else self.kernels.FORWARD).value
        return self._route(mode, pull_BJD, couplings_JBI, None)

    def backward(self, pull_BJD: Tensor, couplings_JBI: Tensor, slopes_JBI: Tensor) -> Tensor:
        """Partial sums of the gradient of an iteration's pull; `slopes_JBI` are the logits'."""
        return self._route(self.kernels.BACKWARD.value, pull_BJD, couplings_JBI, slopes_JBI)

    def _route(
        self,
        mode: int,
        pull_BJD: Tensor | None,
        couplings_JBI: Tensor | None,
        slopes_JBI: Tensor | None,
    ) -> Tensor:
        partial_CBJD = self.children_BEI.new_empty(self.chunks, *self.shape_BJD)
        unused = partial_CBJD
        self.kernels.route_tiles[(self.chunks, _blocks_of(self.B, self.blocks.route.images))](
            self.children_BEI,
            self.transforms_JEID,
            unused if pull_BJD is None else pull_BJD,
            unused if couplings_JBI is None else couplings_JBI,
            unused if slopes_JBI is None else slopes_JBI,
            partial_CBJD,
            self.B,
            self.I,
            MODE=mode,
            **self._sizes(self.blocks.route),
        )
        return partial_CBJD

    def squash(
        self,
        partial_CBJD: Tensor,
        bias_JD: Tensor | None,
        sums_BJD: Tensor,
        pull_BJD: Tensor | None,
        written_BJD: Tensor,
        *,
        last: bool,
    ) -> None:
        """Write the sums, and to `written_BJD` the parents if `last` or else the next pull."""
        rows = self.B * self.J
        self.squashes.squash_sums[(_blocks_of(rows, _ROWS),)](
            partial_CBJD,
            partial_CBJD if bias_JD is None else bias_JD,
            sums_BJD,
            partial_CBJD if pull_BJD is None else pull_BJD,
            written_BJD,
            self.chunks,
            rows,
            J=self.J,
            D=self.D,
            ROWS=_ROWS,
            CHUNKS=_CHUNKS,
            BIAS=bias_JD is not None,
            PULLED=pull_BJD is not None and not last,
        )

    def unsquash(
        self,
        partial_CBJD: Tensor | None,
        sums_BJD: Tensor,
        above_BJD: Tensor | None,
        total_BJD: Tensor | None,
        slopes_BJD: Tensor,
    ) -> None:
        """Write the gradient of the sums from that of the parents: partial sums plus `above`."""
        rows = self.B * self.J
        self.squashes.unsquash_sums[(_blocks_of(rows, _ROWS),)](
            sums_BJD if partial_CBJD is None else partial_CBJD,
            sums_BJD,
            sums_BJD if above_BJD is None else above_BJD,
            slopes_BJD if total_BJD is None else total_BJD,
            slopes_BJD,
            0 if partial_CBJD is None else self.chunks,
            rows,
            D=self.D,
            ROWS=_ROWS,
            CHUNKS=_CHUNKS,
            ABOVE=above_BJD is not None,
        )

    def children_slopes(self, terms: Terms) -> Tensor:
        """Gradient of the children."""
        block = self.blocks.children
        chunks = _blocks_of(self.I, block.numbers // self.E)
        written = torch.empty_like(self.children_BEI)
        kernel = self.kernels.children_slopes[(chunks, _blocks_of(self.B, block.images))]
        self._last_pass(kernel, block, self.transforms_JEID, written, terms)
        return written

    def transforms_slopes(self, terms: Terms) -> Tensor:
        """Gradient of the matrices."""
        block = self.blocks.transforms
        chunks = _blocks_of(self.I, block.numbers // self.E)
        written = torch.empty_like(self.transforms_JEID)
        kernel = self.kernels.transforms_slopes[(chunks, self.J)]
        self._last_pass(kernel, block, self.children_BEI, written, terms)
        return written

    def _last_pass(
        self, kernel: Any, block: Block, factor: Tensor, written: Tensor, terms: Terms
    ) -> None:
        kernel(
            factor,
            terms.couplings,
            terms.couplings if terms.logits_slopes is None else terms.logits_slopes,
            terms.sums_slopes,
            terms.pulls,
            written,
            self.B,
            self.I,
            TERMS=len(terms.couplings),
            FIRST=len(terms.sums_slopes) > len(terms.couplings),
            FULL=terms.logits_slopes is not None,
            **self._sizes(block),
        )


def _blocks_of(size: int, block: int) -> int:
    return -(-size // block)
