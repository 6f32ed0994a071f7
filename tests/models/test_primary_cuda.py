import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capsrepro.models.capsnet import PrimaryCapsules
from capsrepro.models.convolution import set_convolution_precision
from capsrepro.models.gpu.primary_cuda import plainly_squashed_maps, squashed_maps

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TYPES, DIM, SCALE = 32, 8, 1 / 32


@pytest.mark.slow
def test_interpreted_kernels_are_the_plain_squash_gradients_included() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    # Triton reads the variable when it is imported, hence a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    program = Path(__file__).with_name("interpreted_primary.py")
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    assert len(found) == 12
    for name, (capsules, maps, bias) in found.items():
        # The interpreter cuts off where a GPU rounds to bfloat16.
        assert maps < {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}[name.split()[-1]]
        assert max(capsules, bias) < (1e-12 if "float64" in name else 1e-5)


def test_maps_of_bfloat16_are_widened_before_anything_else() -> None:
    maps = torch.randn(2, 6, 3, 3).bfloat16()
    bias = torch.randn(6)
    capsules = squashed_maps(maps, bias, 3, 2, 0.5)
    assert capsules.dtype == torch.float32
    assert torch.equal(capsules, squashed_maps(maps.float(), bias, 3, 2, 0.5))


def test_capsules_are_groups_of_neighbouring_channels_at_a_place() -> None:
    maps = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    capsules_BEI = squashed_maps(maps, bias, 3, 2, 0.5)
    vector = 0.5 * maps[1, 2:4, 2, 1] + bias[2:4]
    squared = vector.square().sum()
    expected = vector * squared.sqrt() / (1 + squared)
    assert torch.allclose(capsules_BEI[1, :, 12 + 2 * 4 + 1], expected)


def outcome(function, maps: Tensor, bias: Tensor, slopes: Tensor) -> list[Tensor]:
    capsules = function(maps, bias, TYPES, DIM, SCALE)
    return [capsules, *torch.autograd.grad(capsules, (maps, bias), slopes.to(capsules))]


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_kernels_are_as_exact_as_float32_and_give_the_same_bits_each_time(
    kind: torch.dtype, order: torch.memory_format
) -> None:
    maps = (3 * torch.randn(37, TYPES * DIM, 6, 5, device="cuda")).to(kind)
    maps = maps.contiguous(memory_format=order).requires_grad_()
    bias = torch.randn(TYPES * DIM, device="cuda").requires_grad_()
    slopes = torch.randn(37, DIM, TYPES * 30, device="cuda")
    fused = outcome(squashed_maps, maps, bias, slopes)
    assert fused[1].dtype == kind
    assert fused[1].stride() == maps.stride()
    assert all(map(torch.equal, fused, outcome(squashed_maps, maps, bias, slopes)))
    exact = [x.detach().double().requires_grad_() for x in (maps, bias)]
    for got, want in zip(fused, outcome(plainly_squashed_maps, *exact, slopes), strict=True):
        nearest = 4e-3 if got.dtype == torch.bfloat16 else 1e-6
        assert (got - want).norm() < nearest * want.norm()


@pytest.mark.gpu
@ON_CUDA
def test_primary_capsules_are_the_squashed_maps_of_the_convolution() -> None:
    primary = PrimaryCapsules(4, TYPES, DIM, 3, 2, "valid", SCALE).cuda()
    set_convolution_precision(primary, "bf16")
    features = torch.randn(5, 4, 9, 9, device="cuda").contiguous(memory_format=torch.channels_last)
    maps = primary.convolution(features)
    assert maps.dtype == torch.float32
    plain = plainly_squashed_maps(maps, primary.bias, TYPES, DIM, SCALE)
    assert torch.allclose(primary(features), plain, rtol=1e-5, atol=1e-6)
