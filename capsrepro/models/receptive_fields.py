"""Which children a parent at each place sees, and so which parents compete for a child.

Shape suffixes: X places of the children, L places of the parents, K places of one kernel, M the
most places of parents that see the same child.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReceptiveFields(nn.Module):
    """A square kernel sliding without padding over a grid of children.

    Hinton et al. 2018, Section 4: a child sends its votes only to parents whose receptive field
    contains it, so that it competes over K places at most and over fewer at the borders. A kernel
    as large as the grid has one place of parents, which sees every child: the class layer.

    Args:
        side: Of the children's square grid.
        kernel: Its side, in children.
        stride: In children.

    Attributes:
        windows: Place of the child under each place of the kernel, shape (L, K).
        slots: Where in the flattened `windows` a child stands, L·K where there is none, (X, M).
        seen: By how many places of parents a child is seen; 0 for those beyond the last stride.
        seen_places: How many places of children are seen at all.

    Raises:
        ValueError: The kernel is larger than the grid.
    """

    windows: Tensor
    slots: Tensor
    seen: Tensor

    def __init__(self, side: int, kernel: int, stride: int) -> None:
        super().__init__()
        if kernel > side:
            raise ValueError(f"a {kernel}x{kernel} kernel does not fit into {side}x{side} capsules")
        places_YX = torch.arange(side * side).view(side, side)
        views = places_YX.unfold(0, kernel, stride).unfold(1, kernel, stride)
        children_LK = views.reshape(-1, kernel * kernel)
        seen_X = torch.bincount(children_LK.flatten(), minlength=side * side)
        self.register_buffer("windows", children_LK, persistent=False)
        self.register_buffer("slots", _inverse(children_LK, seen_X), persistent=False)
        self.register_buffer("seen", seen_X, persistent=False)
        self.seen_places = int((seen_X > 0).sum())

    def patches(self, children_BXF: Tensor) -> Tensor:
        """What the parents of each place see, shape (B, L, K, F)."""
        B, _, F = children_BXF.shape
        L, K = self.windows.shape
        return children_BXF.index_select(1, self.windows.flatten()).view(B, L, K, F)

    def over_parents(self, logs_BLKF: Tensor) -> Tensor:
        """For each child under each parent: log Σ exp over all places of parents that see it.

        Shape as given. Children that no parent sees take no part.
        """
        B, L, K, F = logs_BLKF.shape
        # Not -inf: a child that nobody sees would turn its gradient, and with it all, into NaN.
        nothing = logs_BLKF.new_full((B, 1, F), -1e30)
        flat = torch.cat([logs_BLKF.reshape(B, L * K, F), nothing], 1)
        X, M = self.slots.shape
        gathered = flat.index_select(1, self.slots.flatten()).view(B, X, M, F)
        return self.patches(gathered.logsumexp(2))


def _inverse(children_LK: Tensor, seen_X: Tensor) -> Tensor:
    """Where each child stands in the flattened table, filled up with the table's length."""
    order = children_LK.flatten().argsort(stable=True)
    most, nowhere = int(seen_X.max()), children_LK.numel()
    inverse_XM = torch.full((len(seen_X), most), nowhere)
    starts_X = seen_X.cumsum(0) - seen_X
    for slot in range(most):
        has_X = seen_X > slot
        inverse_XM[has_X, slot] = order[starts_X[has_X] + slot]
    return inverse_XM
