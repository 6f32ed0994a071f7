"""The compiled loops of routing by agreement, called on tensors and all children.

Shape suffixes: see `capsrepro.models.cpu.routing_code`; S parts of the children.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capsrepro.models.cpu.routing_code import KERNELS, NUMBERS, Pose, kernel
from capsrepro.models.cpu.threads import PARTS, call_in_parts


class Loops:
    """The compiled loops over all children.

    Attributes:
        equal_share: Of every parent in the first iteration: 1/J, or 1/(J+1).
    """

    def __init__(self, children_IUEV: Tensor, matrices_IJED: Tensor, pose: Pose) -> None:
        self.children_IUEV, self.matrices_IJED, self.pose = children_IUEV, matrices_IJED, pose
        I, U, E, V = children_IUEV.shape
        J, D = matrices_IJED.shape[1], pose.parent
        self.sizes = {"I": I, "U": U, "E": E, "V": V, "J": J, "D": D, "P": pose.filled(V)}
        self.equal_share = 1 / (J + pose.none_of_the_above)

    def equal_shares(self) -> Tensor:
        """s_UJDV of the first iteration."""
        sums_SUJDV = self.empty("UJDV", PARTS)
        self._run("equal_shares", [sums_SUJDV], [])
        return sums_SUJDV.sum(0) * self.equal_share

    def route(self, so_far_UJDV: Tensor, couplings_IUJV: Tensor) -> Tensor:
        """s_UJDV of a later iteration; couplings are written."""
        sums_SUJDV = self.empty("UJDV", PARTS).zero_()
        own = [sums_SUJDV, self.empty("JDV", PARTS)]
        self._run("route", own, [couplings_IUJV, so_far_UJDV])
        return sums_SUJDV.sum(0)

    def through_logits(
        self, d_sums_UJDV: Tensor, couplings_IUJV: Tensor, d_logits_IUJV: Tensor
    ) -> Tensor:
        """Gradient of V_UJDV of one iteration; those of logits are written."""
        d_so_far_SUJDV = self.empty("UJDV", PARTS).zero_()
        own = [d_so_far_SUJDV, self.empty("JDV", PARTS)]
        self._run("through_logits", own, [d_logits_IUJV, couplings_IUJV, d_sums_UJDV])
        return d_so_far_SUJDV.sum(0)

    def to_factors(
        self, base_UJDV: Tensor, terms: Sequence[Tensor], *, matrices: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of children and, if wanted, of matrices.

        Args:
            base_UJDV: Gradient of the votes that no coupling weighs.
            terms: couplings_TIUJV with their d_sums_TUJDV, d_logits_LIUJV with their so_far_LUJDV.
            matrices: Whether theirs is wanted.
        """
        d_children_IUEV = torch.empty_like(self.children_IUEV)
        d_matrices_IJEP = self.empty("IJEP") if matrices else None
        couplings_TIUJV, _, d_logits_LIUJV, _ = terms
        numbers = {"T": len(couplings_TIUJV), "L": len(d_logits_LIUJV)}
        numbers["M"] = self.sizes["J"] if matrices else 0
        others = [d_children_IUEV, d_matrices_IJEP, base_UJDV, *terms]
        self._run("to_factors", [self.empty("JUDV", PARTS)], others, **numbers)
        if d_matrices_IJEP is None:
            return d_children_IUEV, None
        return d_children_IUEV, d_matrices_IJEP[..., : self.pose.parent]

    def empty(self, axes: str, *more: int) -> Tensor:
        """Memory for an array of such axes, and of one more before them."""
        return self.children_IUEV.new_empty(*more, *(self.sizes[axis] for axis in axes))

    def _run(
        self, name: str, own: Sequence[Tensor], others: Sequence[Tensor | None], **numbers: int
    ) -> None:
        """Run a kernel on all children.

        Args:
            name: In `routing_code.KERNELS`, which names the arrays.
            own: Arrays of which each part of the children has its own, shape (PARTS, …).
            others: Those after them, but for children and matrices.
            numbers: T, L and M where they are not 0.
        """
        dtype, sizes = self.children_IUEV.dtype, {**self.sizes, "T": 0, "L": 0, "M": 0, **numbers}
        arrays = [*own, *others, self.children_IUEV, self.matrices_IJED]
        given = dict(zip(KERNELS[name][1], arrays, strict=True))
        counts = [sizes[axis] for axis in NUMBERS[:-2]]
        function = kernel(name, dtype, self.pose)
        call_in_parts(function, given, sizes, dtype, counts, sizes["I"], own=len(own))
