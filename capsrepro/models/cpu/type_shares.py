"""How a child shares itself out among the types of parents at one place: a softmax and its total.

Shape suffixes: see `capsrepro.models.votes`; S is N filled up to whole vectors.

The softmax over J of base_TJ − cost_TJN reads and writes T·J·N numbers several times. On the
processor it is one compiled loop each way, in which the numbers of one place stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from capsrepro.models.cpu.threads import call_in_parts, can_compile


def shares_of_types(bases_TJ: Tensor, costs_TJN: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over J of base − cost, shape (T, J, N), and the logarithm of its sum, (T, N)."""
    if not can_compile(costs_TJN):
        return written_shares_of_types(bases_TJ, costs_TJN)
    from capsrepro.models.cpu.vector_code import lanes_of

    N = costs_TJN.shape[2]
    missing = -N % lanes_of(costs_TJN.dtype)
    costs_TJS = F.pad(costs_TJN, (0, missing)) if missing else costs_TJN.contiguous()
    shares_TJS, totals_TS = _Shares.apply(bases_TJ.contiguous(), costs_TJS)
    return shares_TJS[:, :, :N], totals_TS[:, :N]


def written_shares_of_types(bases_TJ: Tensor, costs_TJN: Tensor) -> tuple[Tensor, Tensor]:
    """The same in torch's operations: the reference, and what runs elsewhere."""
    logs_TJN = bases_TJ.unsqueeze(2) - costs_TJN
    return logs_TJN.softmax(1), logs_TJN.logsumexp(1)


class _Shares(torch.autograd.Function):
    """With shares s, ∂log = s (∂s − Σ_j s ∂s + ∂total), ∂base = Σ_n ∂log and ∂cost = −∂log."""

    @staticmethod
    def forward(ctx: Any, bases_TJ: Tensor, costs_TJS: Tensor) -> tuple[Tensor, Tensor]:
        shares_TJS = torch.empty_like(costs_TJS)
        highest_TS, sums_TS = (torch.empty_like(costs_TJS[:, 0]) for _ in range(2))
        _run("shares", [shares_TJS, highest_TS, sums_TS, bases_TJ, costs_TJS])
        ctx.save_for_backward(shares_TJS)
        return shares_TJS, sums_TS.log_().add_(highest_TS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_shares_TJS: Tensor, d_totals_TS: Tensor) -> tuple[Tensor, Tensor]:
        (shares_TJS,) = ctx.saved_tensors
        d_costs_TJS = torch.empty_like(shares_TJS)
        d_bases_TJ = torch.empty_like(shares_TJS[:, :, 0])
        common_TS = torch.empty_like(d_totals_TS)
        given = [shares_TJS, d_shares_TJS.contiguous(), d_totals_TS.contiguous()]
        _run("gradient", [d_costs_TJS, d_bases_TJ, common_TS, *given])
        return d_bases_TJ, d_costs_TJS


def _run(name: str, arrays: list[Tensor]) -> None:
    T, J, S = arrays[0].shape
    dtype, names = arrays[0].dtype, _KERNELS[name][1]
    sizes = {"T": T, "J": J, "S": S}
    given = dict(zip(names, arrays, strict=True))
    call_in_parts(_kernel(name, dtype), given, sizes, dtype, (J, S), T)


@cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    from capsrepro.models.cpu.vector_code import VectorCode

    emit, names = _KERNELS[name]
    code = VectorCode(dtype, [*names], ["J", "S", "first", "last"])
    sizes = {"T": 0, "J": code.arguments["J"], "S": code.arguments["S"]}
    emit(code, *code.arrays(names, sizes).values())
    return code.compiled()


def _shares(code: Any, *arrays: Any) -> None:
    """For each vector of children the highest log, then powers of the rest, then their shares."""
    shares_TJS, highest_TS, sums_TS, bases_TJ, costs_TJS = arrays
    J, S = code.arguments["J"], code.arguments["S"]
    with (
        code.loop(code.arguments["first"], code.arguments["last"]) as t,
        code.loop(0, S, code.lanes) as n,
    ):
        highest, total = (
            code.variable(code.constant(float("-inf"))),
            code.variable(code.constant(0)),
        )
        with code.loop(0, J) as j:
            log = bases_TJ.spread(t, j) - costs_TJS.load(t, j, n)
            highest.value = code.larger(highest.value, log)
        with code.loop(0, J) as j:
            log = bases_TJ.spread(t, j) - costs_TJS.load(t, j, n)
            power = code.exp(log - highest.value)
            total.value += power
            shares_TJS.store(power, t, j, n)
        part = code.constant(1) / total.value
        with code.loop(0, J) as j:
            shares_TJS.store(shares_TJS.load(t, j, n) * part, t, j, n)
        highest_TS.store(highest.value, t, n)
        sums_TS.store(total.value, t, n)


def _gradient(code: Any, *arrays: Any) -> None:
    """See `_Shares`."""
    d_costs_TJS, d_bases_TJ, common_TS, shares_TJS, d_shares_TJS, d_totals_TS = arrays
    J, S, zero = code.arguments["J"], code.arguments["S"], code.constant(0)
    with code.loop(code.arguments["first"], code.arguments["last"]) as t:
        with code.loop(0, S, code.lanes) as n:
            common = code.variable(zero - d_totals_TS.load(t, n))
            with code.loop(0, J) as j:
                common.value += shares_TJS.load(t, j, n) * d_shares_TJS.load(t, j, n)
            common_TS.store(common.value, t, n)
        with code.loop(0, J) as j:
            d_base = code.variable(zero)
            with code.loop(0, S, code.lanes) as n:
                d_log = common_TS.load(t, n) - d_shares_TJS.load(t, j, n)
                d_log *= shares_TJS.load(t, j, n)
                d_base.value = d_base.value - d_log
                d_costs_TJS.store(d_log, t, j, n)
            d_bases_TJ.put(code.total(d_base.value), t, j)


_KERNELS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "shares": (_shares, ("shares_TJS", "highest_TS", "sums_TS", "bases_TJ", "costs_TJS")),
    "gradient": (
        _gradient,
        ("d_costs_TJS", "d_bases_TJ", "common_TS", "shares_TJS", "d_shares_TJS", "d_totals_TS"),
    ),
}
