import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capsrepro.models.gpu.convolution_cuda import linear_convolution, rectified_convolution
from capsrepro.models.gpu.convolution_factors import Precision
from capsrepro.models.gpu.convolution_launches import supported

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
def test_interpreted_kernels_are_the_plain_convolution_gradients_included() -> None:
    """Triton reads the variable when it is imported, hence a process of its own."""
    pytest.importorskip("triton", reason="Triton is not installed")
    program = Path(__file__).with_name("interpreted_convolution.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[tuple[int, list[float]]] = json.loads(done.stdout)
    assert len(found) == 11
    for parts, differences in found:
        # Two factors rounded to 11 bits, or none.
        low, high = (1e-5, 4e-4) if parts == 1 else (0, 1e-6)
        assert all(low < difference < high for difference in differences), (parts, differences)


def factors_of(B: int, C: int, O: int, H: int, side: int) -> tuple[Tensor, Tensor]:
    """Rounded to bfloat16, so that all ways multiply the same numbers."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(B, C, H, H, generator=generator).bfloat16().float()
    weight = torch.randn(O, C, side, side, generator=generator) / (C * side**2) ** 0.5
    return images.requires_grad_(), weight.bfloat16().float().requires_grad_()


def outcome(function, images: Tensor, weight: Tensor) -> list[Tensor]:
    """The convolution and both gradients."""
    result = function(images, weight)
    slopes = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return [result, *torch.autograd.grad(result, (images, weight), slopes.to(result))]


def test_where_there_is_no_gpu_the_library_convolves_the_rounded_factors() -> None:
    images, weight = factors_of(64, 128, 128, 4, 3)
    assert not supported(images, weight, 1)
    result = linear_convolution(images, weight, 1, 0, "bf16")
    assert result.dtype == torch.float32
    assert torch.equal(result, F.conv2d(images.bfloat16(), weight.bfloat16()).float())
    exact = linear_convolution(images, weight, 1, 0, "float32")
    assert torch.equal(exact, F.conv2d(images, weight))


# Of the result and the gradients of images and weight, relative to the norm. Factors are rounded to
# bfloat16 before, the gradient of the images after; to 11 bits they are rounded by the kernels.
TOLERANCES = {"float32": (1e-5, 1e-5, 1e-5), "tf32": (1e-3,) * 3, "bf16": (1e-5, 4e-3, 1e-5)}


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("images", [128, 90])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_kernels_are_as_exact_as_their_precision_and_always_the_same(
    images: int, precision: Precision
) -> None:
    factors = [x.detach().cuda() for x in factors_of(images, 256, 256, 14, 5)]
    if precision != "bf16":
        factors = [x + x.roll(1) / 512 for x in factors]
    factors = [x.requires_grad_() for x in factors]
    if not supported(*factors, 2):
        pytest.skip("needs compute capability 9 and Triton")
    twice = [
        outcome(lambda x, w: linear_convolution(x, w, 2, 0, precision), *factors) for _ in range(2)
    ]
    assert all(map(torch.equal, *twice))
    plain = outcome(lambda x, w: F.conv2d(x.double(), w.double(), None, 2), *factors)
    for got, want, tolerance in zip(twice[0], plain, TOLERANCES[precision], strict=True):
        assert (got - want).norm() < tolerance * want.norm()


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize(
    ("channels", "kernel", "padding", "slopes_of_images"), [(1, 9, 0, False), (64, 5, 2, True)]
)
def test_a_rectified_convolution_is_relu_of_the_plain_one_in_eight_bits(
    channels: int, kernel: int, padding: int, slopes_of_images: bool
) -> None:
    """A first layer, as a product over patches, and a later one, by the library."""
    images, weight = (x.detach().cuda() for x in factors_of(32, channels, 64, 20, kernel))
    bias = torch.linspace(-1, 1, 64, device="cuda")
    inputs = [x.requires_grad_() for x in ([images] if slopes_of_images else []) + [weight, bias]]

    def found(result: Tensor) -> list[Tensor]:
        slopes = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(result, inputs, slopes.to(result))
        return [result.double(), *(gradient.double() for gradient in gradients)]

    twice = [found(rectified_convolution(images, weight, bias, 1, padding)) for _ in range(2)]
    assert all(map(torch.equal, *twice))
    doubles = images.double(), weight.double(), bias.double()
    plain = found(F.conv2d(*doubles, 1, padding).relu())
    for number, (got, want) in enumerate(zip(twice[0], plain, strict=True)):
        assert (got - want).norm() < (2e-2 if number else 4e-3) * want.norm()
