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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capsrepro.models.cpu.threads import can_compile
from capsrepro.models.gpu.routing_launches import BLOCKS, Blocks, Launcher, Terms
from capsrepro.models.routing import Gradient, factored_dynamic_routing, will_be_differentiated


def supported(children_BEI: Tensor, transforms_JEID: Tensor) -> bool:
    """Whether the kernels take these: float32 on a GPU, poses of 4, 8, 16 or 32 numbers.

    Parents' poses are of 16 or 32, since products add over them. Triton must be installed.
    """
    _, E, _, D = transforms_JEID.shape
    return (
        children_BEI.is_cuda
        and children_BEI.dtype == transforms_JEID.dtype == torch.float32
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
    """`factored_dynamic_routing` by kernels where `supported`, by compiled loops on the processor.

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
        return _plain_or_compiled(children_BEI)(
            children_BEI,
            transforms_JEID,
            iterations,
            bias_JD=bias_JD,
            gradient=gradient,
            none_of_the_above=none_of_the_above,
        )
    inputs = (children_BEI, transforms_JEID, bias_JD)
    trains = will_be_differentiated(*inputs)
    full = gradient == "full"
    kept = 0 if not trains else iterations - 1 if full else min(1, iterations - 1)
    with torch.cuda.device(children_BEI.device):
        parents: Tensor = FusedRouting.apply(
            *inputs, iterations, kept, full, none_of_the_above, BLOCKS
        )
    return parents


def _plain_or_compiled(children_BEI: Tensor) -> Callable[..., Tensor]:
    """The routing for what the kernels do not take."""
    if can_compile(children_BEI) and children_BEI.numel() > 0:
        # Imported where it is needed: its compiler is.
        from capsrepro.models.cpu.routing_cpu import compiled_dynamic_routing

        return compiled_dynamic_routing
    return factored_dynamic_routing


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
        launch = Launcher(children_BEI, transforms_JEID, none_of_the_above, blocks)
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
    @once_differentiable
    def backward(ctx: Any, slopes_BJD: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of children, matrices and bias."""
        children_BEI, transforms_JEID, sums_TBJD, pulls_TBJD, couplings_TJBI = ctx.saved_tensors
        launch = Launcher(children_BEI, transforms_JEID, ctx.none_of_the_above, ctx.blocks)
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
        terms = Terms(couplings_TJBI, logits_slopes_TJBI, sums_slopes_TBJD, pulls_TBJD)
        wanted = ctx.needs_input_grad
        children_slopes_BEI = launch.children_slopes(terms) if wanted[0] else None
        transforms_slopes_JEID = launch.transforms_slopes(terms) if wanted[1] else None
        bias_slopes_JD = sums_slopes_TBJD.sum((0, 1)) if wanted[2] else None
        return (children_slopes_BEI, transforms_slopes_JEID, bias_slopes_JD, *[None] * 5)
