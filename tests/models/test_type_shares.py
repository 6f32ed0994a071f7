import math

import pytest
import torch
from em_cases import furthest
from torch import Tensor

pytest.importorskip("llvmlite", reason="the fast softmax is compiled by llvmlite")

from capsrepro.models.cpu.type_shares import shares_of_types, written_shares_of_types


def outcome(function, bases_TJ: Tensor, costs_TJN: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Shares, totals and gradients of an arbitrary number made of both."""
    inputs = [x.to(dtype).requires_grad_() for x in (bases_TJ, costs_TJN)]
    outputs = function(*inputs)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(x.shape, generator=generator).to(dtype) for x in outputs]
    total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
    names = "shares", "totals", "by bases", "by costs"
    return dict(zip(names, (*outputs, *torch.autograd.grad(total, inputs)), strict=True))


@pytest.mark.parametrize("size", [(1, 1, 1), (9, 5, 17), (20, 32, 48), (3, 1, 40)], ids=str)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-6), (torch.float64, 1e-14)])
def test_shares_and_gradients_are_those_of_torch(
    size: tuple[int, int, int], dtype: torch.dtype, most: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    T, J, N = size
    bases = torch.randn(T, J, generator=generator).double()
    costs = 10 * torch.randn(T, J, N, generator=generator).double()
    got = outcome(shares_of_types, bases, costs, dtype)
    want = outcome(written_shares_of_types, bases, costs, torch.float64)
    if J == 1:
        # Nothing moves a share of 1: what is left of these is rounding.
        want["by bases"], want["by costs"] = want["by bases"] + 1, want["by costs"] + 1
        got["by bases"], got["by costs"] = got["by bases"] + 1, got["by costs"] + 1
    assert max(furthest(got, want).values()) < most, furthest(got, want)


def test_far_costs_leave_no_nan_and_nan_is_not_hidden() -> None:
    bases = torch.zeros(1, 3)
    costs = torch.tensor([[[1e30, 0.0], [2e30, 1e3], [3e30, math.nan]]])
    shares, totals = shares_of_types(bases, costs)
    assert shares[0, :, 0].tolist() == [1, 0, 0]
    assert totals[0, 0] == -torch.tensor(1e30)
    assert shares[0, :, 1].isnan().all()
    assert totals[0, 1].isnan()
