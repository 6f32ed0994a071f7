"""Dynamic routing on a GPU without votes: one kernel per iteration, forwards and backwards.

Logits are linear in the parents of earlier iterations, so that logits^t = û·V^t with V^t = Σ v^τ
over τ < t. An iteration is then one pass over children and matrices, which pulls V^t back to the
children, takes the softmax and sums the weighted votes; its gradient is one more pass of the same
shape. What is kept for the gradient are the couplings, (B, J, I) per iteration, and sums and V of
(B, J, D) each: no tensor has the size of the votes, or of the children times the parents' poses.

Sums over children go through partial sums of chunks, added in a fixed order: no atomics, the same
bits each time. Nothing waits for the device and block sizes follow from the shapes alone, so that
a CUDA graph can capture it all.

Shape suffixes: see `capsrepro.models.routing`; T iterations, C chunks of children.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capsrepro.models.routing import Gradient, factored_dynamic_routing


class Block(NamedTuple):
    """What a program of a kernel takes on.

    Attributes:
        images: Images of a tile.
        numbers: Numbers of a tile's children: E · children of a tile.
        warps: Of 32 threads.
        stages: Of the pipeline of loads.
    """

    images: int
    numbers: int
    warps: int
    stages: int = 1


class Blocks(NamedTuple):
    """Of each kernel, and the precision of products as in `triton.language.dot`."""

    route: Block = Block(32, 64, 2)
    children: Block = Block(32, 64, 4)
    transforms: Block = Block(32, 64, 4)
    precision: str = "tf32x3"


BLOCKS = Blocks()

# What the kernels of the squash take on: rows (b, j) of a program, and chunks added at a time.
_ROWS, _CHUNKS = 8, 16


def supported(children_BEI: Tensor, transforms_JEID: Tensor) -> bool:
    """Whether the kernels take these: float32 on a GPU, at most 16 parents, E and D 8 to 32.

    E, the dimensions of a child, and D, those of a parent, must be powers of two, D at least 16.
    """
    J, E, _, D = transforms_JEID.shape
    return (
        children_BEI.is_cuda
        and children_BEI.dtype == transforms_JEID.dtype == torch.float32
        and J <= 16
        and E in (4, 8, 16, 32)
        and D in (16, 32)
        and importlib.util.find_spec("triton") is not None
    )


def fused_dynamic_routing(
    children_BEI: Tensor,
    transforms_JEID: Tensor,
    iterations: int,
    *,
    bias_JD: Tensor | None = None,
    gradient: Gradient = "full",
    none_of_the_above: bool = False,
) -> Tensor:
    """`factored_dynamic_routing` by kernels where `supported`, by itself elsewhere.

    Args:
        children_BEI: Poses u_i of the layer below.
        transforms_JEID: Matrices W_ij.
        iterations: As in `dynamic_routing`.
        bias_JD: As in `dynamic_routing`.
        gradient: As in `dynamic_routing`.
        none_of_the_above: As in `dynamic_routing`.

    Returns:
        Parent capsules v_BJD, equal up to rounding. They have one derivative, not a second.
    """
    if not supported(children_BEI, transforms_JEID):
        return factored_dynamic_routing(
            children_BEI,
            transforms_JEID,
            iterations,
            bias_JD=bias_JD,
            gradient=gradient,
            none_of_the_above=none_of_the_above,
        )
    inputs = (children_BEI, transforms_JEID, bias_JD)
    trains = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    full = gradient == "full"
    kept = 0 if not trains else iterations - 1 if full else min(1, iterations - 1)
    with torch.cuda.device(children_BEI.device):
        parents: Tensor = FusedRouting.apply(
            *inputs, iterations, kept, full, none_of_the_above, BLOCKS
        )
    return parents


class FusedRouting(torch.autograd.Function):
    """The kernels and their gradient; for tensors on a GPU, or for Triton's interpreter."""

    @staticmethod
    def forward(
        ctx: Any,
        children_BEI: Tensor,
        transforms_JEID: Tensor,
        bias_JD: Tensor | None,
        iterations: int,
        kept: int,
        full: bool,
        none_of_the_above: bool,
        blocks: Blocks,
    ) -> Tensor:
        """Parents v_BJD; couplings of the last `kept` iterations are kept for the gradient."""
        children_BEI, transforms_JEID = children_BEI.contiguous(), transforms_JEID.contiguous()
        launch = _Launcher(children_BEI, transforms_JEID, none_of_the_above, blocks)
        if bias_JD is not None:
            bias_JD = bias_JD.contiguous()
        new = children_BEI.new_empty
        parents_BJD = new(launch.shape_BJD)
        sums_TBJD = new(iterations, *launch.shape_BJD)
        pulls_TBJD = new(max(iterations - 1, 1), *launch.shape_BJD)
        couplings_TJBI = new(kept, *launch.shape_JBI)
        scratch_JBI = new(launch.shape_JBI) if kept < iterations - 1 else None
        for t in range(iterations):
            before = max(t - 1, 0)
            slot = t - (iterations - kept)
            partial_CBJD = launch.forward(
                pulls_TBJD[before] if t else None,
                couplings_TJBI[slot] if slot >= 0 else scratch_JBI,
            )
            launch.squash(
                partial_CBJD,
                bias_JD,
                sums_TBJD[t],
                pulls_TBJD[before] if t else None,
                parents_BJD if t == iterations - 1 else pulls_TBJD[t],
                last=t == iterations - 1,
            )
        ctx.save_for_backward(children_BEI, transforms_JEID, sums_TBJD, pulls_TBJD, couplings_TJBI)
        ctx.full, ctx.none_of_the_above, ctx.blocks = full, none_of_the_above, blocks
        return parents_BJD

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slopes_BJD: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of children, matrices and bias."""
        children_BEI, transforms_JEID, sums_TBJD, pulls_TBJD, couplings_TJBI = ctx.saved_tensors
        launch = _Launcher(children_BEI, transforms_JEID, ctx.none_of_the_above, ctx.blocks)
        if not ctx.full:
            sums_TBJD = sums_TBJD[-1:]
        iterations = len(sums_TBJD)
        new = children_BEI.new_empty
        sums_slopes_TBJD, logits_slopes_TJBI = torch.empty_like(sums_TBJD), None
        launch.unsquash(None, sums_TBJD[-1], slopes_BJD.contiguous(), None, sums_slopes_TBJD[-1])
        if ctx.full:
            logits_slopes_TJBI = torch.empty_like(couplings_TJBI)
            total_BJD = new(launch.shape_BJD)
            for t in range(iterations - 1, 0, -1):
                partial_CBJD = launch.backward(
                    sums_slopes_TBJD[t], couplings_TJBI[t - 1], logits_slopes_TJBI[t - 1]
                )
                above_BJD = None if t == iterations - 1 else total_BJD
                launch.unsquash(
                    partial_CBJD, sums_TBJD[t - 1], above_BJD, total_BJD, sums_slopes_TBJD[t - 1]
                )
        terms = (couplings_TJBI, logits_slopes_TJBI, sums_slopes_TBJD, pulls_TBJD)
        wanted = ctx.needs_input_grad
        children_slopes_BEI = launch.children_slopes(*terms) if wanted[0] else None
        transforms_slopes_JEID = launch.transforms_slopes(*terms) if wanted[1] else None
        bias_slopes_JD = sums_slopes_TBJD.sum((0, 1)) if wanted[2] else None
        return (children_slopes_BEI, transforms_slopes_JEID, bias_slopes_JD, *[None] * 5)


class _Launcher:
    """Launches the kernels on the children and matrices of one layer."""

    def __init__(
        self, children_BEI: Tensor, transforms_JEID: Tensor, none_of_the_above: bool, blocks: Blocks
    ) -> None:
        # Triton exists on few machines; kernels are loaded where they run.
        from capsrepro.models import routing_kernels

        self.kernels: Any = routing_kernels
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
            "PRECISION": self.blocks.precision,
            "num_warps": block.warps,
            "num_stages": block.stages,
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
        self.kernels.squash_sums[(_blocks_of(rows, _ROWS),)](
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
        self.kernels.unsquash_sums[(_blocks_of(rows, _ROWS),)](
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

    def children_slopes(self, *terms: Tensor | None) -> Tensor:
        """Gradient of the children."""
        block = self.blocks.children
        chunks = _blocks_of(self.I, block.numbers // self.E)
        written = torch.empty_like(self.children_BEI)
        kernel = self.kernels.children_slopes[(chunks, _blocks_of(self.B, block.images))]
        self._last_pass(kernel, block, self.transforms_JEID, written, *terms)
        return written

    def transforms_slopes(self, *terms: Tensor | None) -> Tensor:
        """Gradient of the matrices."""
        block = self.blocks.transforms
        chunks = _blocks_of(self.I, block.numbers // self.E)
        written = torch.empty_like(self.transforms_JEID)
        kernel = self.kernels.transforms_slopes[(chunks, self.J)]
        self._last_pass(kernel, block, self.children_BEI, written, *terms)
        return written

    def _last_pass(
        self,
        kernel: Any,
        block: Block,
        factor: Tensor,
        written: Tensor,
        couplings_TJBI: Tensor,
        slopes_TJBI: Tensor | None,
        sums_slopes_TBJD: Tensor,
        pulls_TBJD: Tensor,
    ) -> None:
        terms = len(couplings_TJBI)
        kernel(
            factor,
            couplings_TJBI,
            couplings_TJBI if slopes_TJBI is None else slopes_TJBI,
            sums_slopes_TBJD,
            pulls_TBJD,
            written,
            self.B,
            self.I,
            terms,
            FIRST=len(sums_slopes_TBJD) > terms,
            FULL=slopes_TJBI is not None,
            **self._sizes(block),
        )


def _blocks_of(size: int, block: int) -> int:
    return -(-size // block)
