import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="loops are compiled by llvmlite")

from capsrepro.models.cpu.vector_code import VectorCode, lanes_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def applied(dtype: torch.dtype, name: str, values_S: Tensor) -> Tensor:
    """One operation of `VectorCode` on as many whole vectors as there are."""
    code = VectorCode(dtype, ["out", "values"], ["S"])
    out, values = code.array("out", code.arguments["S"]), code.array("values", code.arguments["S"])
    with code.loop(0, code.arguments["S"], code.lanes) as n:
        out.store(getattr(code, name)(values.load(n)), n)
    result_S = torch.empty_like(values_S)
    code.compiled()(result_S.data_ptr(), values_S.data_ptr(), len(values_S))
    return result_S


@DTYPES
def test_exp_is_within_two_roundings(dtype: torch.dtype) -> None:
    lowest = math.log(2 * torch.finfo(dtype).tiny) * (1 - 1e-6)
    values = torch.cat([torch.linspace(lowest, 0, 4000, dtype=dtype), torch.linspace(-1, 0, 4000)])
    exact = values.double().exp() if dtype == torch.float32 else values.exp()
    errors = (applied(dtype, "exp", values).double() - exact).abs() / exact
    assert errors.max() < 2 * torch.finfo(dtype).eps


@DTYPES
def test_exp_of_the_far_and_the_odd(dtype: torch.dtype) -> None:
    values = torch.zeros(lanes_of(dtype), dtype=dtype)
    values[:3] = torch.tensor([-1e4, -math.inf, math.nan])
    got = applied(dtype, "exp", values)
    assert got[:2].tolist() == [0, 0]
    assert got[2].isnan()
    assert (got[3:] == 1).all()


@DTYPES
def test_total_is_in_every_lane(dtype: torch.dtype) -> None:
    lanes = lanes_of(dtype)
    got = applied(dtype, "total", torch.arange(2.0 * lanes, dtype=dtype))
    first = lanes * (lanes - 1) / 2
    assert got.tolist() == [first] * lanes + [first + lanes**2] * lanes


@DTYPES
def test_totals_are_one_to_a_lane_and_0_in_the_rest(dtype: torch.dtype) -> None:
    lanes = lanes_of(dtype)
    for rows in (1, lanes - 1, lanes):
        code = VectorCode(dtype, ["out", "values"], [])
        values = code.array("values", rows, lanes)
        code.array("out", lanes).store(code.totals([values.load(n, 0) for n in range(rows)]), 0)
        values_RV = torch.arange(1.0 * rows * lanes, dtype=dtype).view(rows, lanes)
        got = torch.full((lanes,), math.nan, dtype=dtype)
        code.compiled()(got.data_ptr(), values_RV.data_ptr())
        assert got.tolist() == values_RV.sum(1).tolist() + [0] * (lanes - rows)


def test_loops_count_as_ranges_do() -> None:
    code = VectorCode(torch.float64, ["out"], ["stop"])
    out, count = code.array("out", 0), code.variable(code.constant(0))
    with code.loop(1, code.least(code.arguments["stop"], 9), 3), code.loop(0, 2):
        count.value += code.constant(1)
    out.put(count.value, 0)
    function, result = code.compiled(), torch.empty(1, dtype=torch.float64)
    for stop in (-5, 0, 1, 2, 4, 5, 8, 9, 100):
        function(result.data_ptr(), stop)
        assert result.item() == 2 * len(range(1, min(stop, 9), 3))
