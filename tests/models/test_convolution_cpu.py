"""The processor's convolutions against torch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capsrepro.models.convolution import Conv2d, has_bfloat16
from capsrepro.models.cpu import convolution as module
from capsrepro.models.cpu.convolution import convolve, pays, weight_gradient

BFLOAT16 = pytest.mark.skipif(not has_bfloat16("cpu"), reason="no bfloat16 instructions here")
# Images, channels, side, outputs, kernel, stride: those of PrimaryCaps, one image, pixels that no
# stride reaches, one channel, a kernel of one pixel, a result of one pixel; and where torch's pays.
SHAPES = pytest.mark.parametrize(
    "shape",
    [
        (3, 32, 20, 128, 9, 2),
        (1, 16, 14, 128, 5, 3),
        (2, 1, 12, 128, 3, 1),
        (4, 8, 5, 128, 1, 1),
        (2, 8, 5, 128, 5, 2),
        (2, 8, 20, 128, 3, 1),
        (2, 8, 9, 16, 3, 1),
    ],
    ids=str,
)


AT_ONCE = pytest.mark.parametrize("at_once", [1, 2**19], ids=["one by one", "all at once"])


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Images, kernels and biases, all of which want gradients."""
    B, C, side, O, kernel, _ = shape
    generator = torch.Generator().manual_seed(3)
    sizes = [(B, C, side, side), (O, C, kernel, kernel), (O,)]
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def outcome(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The result, and the gradients of one arbitrary number made of it."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(result.shape, generator=generator).to(result.dtype)
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


def test_the_product_pays_for_the_paper_s_primary_capsules_and_not_for_its_first_layer() -> None:
    assert pays(256, 6)
    assert not pays(256, 20)
    assert not pays(16, 6)


@SHAPES
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@AT_ONCE
def test_it_is_torch_s_convolution_with_its_gradients(
    shape: tuple[int, ...],
    rectified: bool,
    with_bias: bool,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    images, kernels, bias = inputs = drawn(shape, torch.float64)
    inputs = inputs[: 3 if with_bias else 2]
    arguments = images, kernels, bias if with_bias else None, shape[-1]
    plain = F.conv2d(*arguments)
    fast = convolve(*arguments, reduced=False, rectified=rectified)
    wanted = outcome(plain.relu() if rectified else plain, inputs)
    for want, got in zip(wanted, outcome(fast, inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = drawn((1, 2, 5, 128, 3, 2), torch.float64)

    def few(*arguments: Tensor) -> Tensor:
        return convolve(*arguments, 2, reduced=False)[:, :3]

    assert pays(128, 2)
    assert torch.autograd.gradcheck(few, inputs, nondet_tol=0)


@SHAPES
def test_kernels_gradient_is_exact_in_float64(shape: tuple[int, ...]) -> None:
    images, kernels, _ = drawn(shape, torch.float64)
    result = F.conv2d(images, kernels, None, shape[-1])
    gradient = torch.randn_like(result)
    (want,) = torch.autograd.grad(result, kernels, gradient)
    got = weight_gradient(images.detach(), gradient, shape[4], shape[-1])
    torch.testing.assert_close(got, want)


@BFLOAT16
@SHAPES
@pytest.mark.parametrize("rectified", [False, True])
@AT_ONCE
def test_reduced_is_the_product_of_the_rounded_factors(
    shape: tuple[int, ...], rectified: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    images, kernels, bias = inputs = drawn(shape, torch.float32)
    fast = convolve(images, kernels, bias, shape[-1], reduced=True, rectified=rectified)
    assert fast.dtype == (torch.bfloat16 if rectified else torch.float32)
    rounded = [factor.detach().bfloat16().float() for factor in (images, kernels)]
    rounded = [factor.requires_grad_() for factor in rounded]
    plain = F.conv2d(*rounded, None, shape[-1]) + bias.view(-1, 1, 1)
    if rectified:
        # The same are cut off, also where rounding decides it.
        plain = torch.where(fast > 0, plain, 0 * plain)
    for want, got in zip(
        outcome(plain, [*rounded, bias]), outcome(fast.float(), inputs), strict=True
    ):
        # Results and gradients are rounded to bfloat16, and the gradient that comes in as well.
        torch.testing.assert_close(
            got, want, rtol=2e-2, atol=5e-3 * float(want.detach().abs().max())
        )


@BFLOAT16
def test_rounding_commutes_with_relu() -> None:
    convolution = Conv2d(1, 16, 3)
    convolution.precision = "bf16"
    images = torch.rand(5, 1, 9, 9)
    rectified = convolution.rectified(images)
    assert torch.equal(rectified, convolution(images).relu().bfloat16())


@pytest.mark.parametrize("reduced", [False, pytest.param(True, marks=BFLOAT16)])
@pytest.mark.parametrize("rectified", [False, True])
def test_only_what_is_wanted_has_a_gradient(
    reduced: bool, rectified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    keys = {"reduced": reduced, "rectified": rectified}
    images, kernels, bias = drawn((2, 16, 8, 128, 3, 1), torch.float32)
    both = torch.autograd.grad(
        convolve(images, kernels, bias, 1, **keys).square().sum(), [images, kernels]
    )
    convolve(images.detach(), kernels, bias, 1, **keys).square().sum().backward()
    assert kernels.grad is not None
    assert torch.equal(kernels.grad, both[1])
    attacked = convolve(images, kernels.detach(), bias.detach(), 1, **keys)
    attacked.square().sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, both[0])


@pytest.mark.parametrize("reduced", [False, pytest.param(True, marks=BFLOAT16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_bits_every_time(reduced: bool, layout: torch.memory_format) -> None:
    images, kernels, bias = inputs = drawn((4, 32, 14, 128, 5, 2), torch.float32)
    kernels.data = kernels.data.contiguous(memory_format=layout)
    first, second = (
        outcome(convolve(images, kernels, bias, 2, reduced=reduced, rectified=True), inputs)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 5])
def test_same_padding_has_torch_s_gradients(stride: int, kernel: int) -> None:
    convolution = Conv2d(3, 128, kernel, stride=stride, padding="same").double()
    images = torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True)
    inputs = [images, convolution.weight, convolution.bias]
    plain = F.conv2d(convolution._pad(images), *inputs[1:], stride)
    for want, got in zip(outcome(plain, inputs), outcome(convolution(images), inputs), strict=True):
        torch.testing.assert_close(got, want)
