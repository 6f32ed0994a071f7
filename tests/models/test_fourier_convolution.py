"""Convolutions by Fourier amplitudes against torch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="there is no compiler: torch's convolutions are used")

from capsrepro.models.cpu import convolution, fourier_convolution, fourier_tiles
from capsrepro.models.cpu.convolution import convolve
from capsrepro.models.cpu.fourier_amplitudes import kept
from capsrepro.models.cpu.fourier_convolution import (
    correlate,
    images_gradient,
    kernels_gradient,
)
from capsrepro.models.cpu.fourier_cuts import Cut, plan
from capsrepro.models.cpu.fourier_tiles import _rooms

# Images, channels, rows, columns, outputs, kernel, stride: PrimaryCaps in small; images that are
# not square, pixels that no stride reaches, an even kernel, one of a pixel; results of one pixel.
SHAPES = pytest.mark.parametrize(
    "shape",
    [
        (3, 16, 20, 20, 32, 9, 2),
        (2, 32, 12, 17, 16, 5, 1),
        (2, 16, 15, 14, 16, 3, 3),
        (1, 16, 9, 9, 16, 4, 2),
        (2, 16, 6, 6, 16, 1, 2),
        (2, 16, 5, 5, 16, 5, 1),
    ],
    ids=str,
)
Shape = tuple[int, ...]


def drawn(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, int]:
    """Images, kernels, a gradient of the result, and the stride."""
    B, C, H, W, O, K, stride = shape
    generator = torch.Generator().manual_seed(3)
    sides = [(side - K) // stride + 1 for side in (H, W)]
    sizes = [(B, C, H, W), (O, C, K, K), (B, O, *sides)]
    images, kernels, gradient = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes
    )
    return images, kernels, gradient, stride


def cuts(shape: Shape) -> list[Cut]:
    """Tiles of one and two pixels, of the whole result, and larger than it."""
    _, _, H, W, _, K, stride = shape
    Y, X = ((side - K) // stride + 1 for side in (H, W))
    taps = -(-K // stride)
    return [
        Cut(tile + taps - 1, tile, (-(-Y // tile), -(-X // tile)), taps, stride)
        for tile in sorted({1, 2, max(Y, X), max(Y, X) + 1})
    ]


def exact(images: Tensor, kernels: Tensor, gradient: Tensor, stride: int) -> list[Tensor]:
    """Result and gradients, by torch in float64."""
    factors = [factor.double().requires_grad_() for factor in (images, kernels)]
    result = F.conv2d(*factors, stride=stride)
    return [result.detach(), *torch.autograd.grad(result, factors, gradient.double())]


def fast(
    images: Tensor, kernels: Tensor, gradient: Tensor, cut: Cut, dtype: torch.dtype
) -> list[Tensor]:
    """The same by Fourier amplitudes."""
    return [
        correlate(images, kernels, cut, dtype),
        images_gradient(images.shape, kernels, gradient, cut, dtype, of=dtype),
        kernels_gradient(images, kernels.shape, gradient, cut, dtype),
    ]


@SHAPES
def test_it_is_the_convolution_with_its_gradients_however_it_is_cut(shape: Shape) -> None:
    images, kernels, gradient, stride = drawn(shape, torch.float64)
    wanted = exact(images, kernels, gradient, stride)
    for cut in cuts(shape):
        found = fast(images, kernels, gradient, cut, torch.float64)
        for want, got in zip(wanted, found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("side", [20, 28])
def test_float32_is_no_less_exact_than_direct_sums(side: int) -> None:
    """Of the paper's PrimaryCaps on MNIST and on MultiMNIST."""
    shape = (4, 256, side, side, 256, 9, 2)
    images, kernels, gradient, stride = drawn(shape, torch.float32)
    images.relu_()
    cut = plan((128, *images.shape[1:]), tuple(kernels.shape), stride)
    assert cut is not None
    factors = [factor.clone().requires_grad_() for factor in (images, kernels)]
    result = F.conv2d(*factors, stride=stride)
    direct = [result.detach(), *torch.autograd.grad(result, factors, gradient)]
    wanted = exact(images, kernels, gradient, stride)
    found = fast(images, kernels, gradient, cut, torch.float32)
    for want, plain, got in zip(wanted, direct, found, strict=True):
        error, of_plain = ((x - want).norm() / want.norm() for x in (got, plain))
        assert error < 1e-6
        assert error < 2 * of_plain


@pytest.mark.parametrize("images_at_once", [1, 3, 256])
@pytest.mark.parametrize("results_at_once", [1, 12, 512])
@pytest.mark.parametrize("channels_at_once", [1, 32, 256])
@pytest.mark.parametrize("cut", [Cut(9, 6, (1, 1), 4, 1), Cut(6, 3, (2, 2), 4, 1)])
def test_parts_of_images_and_of_channels_are_put_together(
    images_at_once: int,
    channels_at_once: int,
    results_at_once: int,
    cut: Cut,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fourier_convolution, "_TILES", images_at_once)
    monkeypatch.setattr(fourier_convolution, "_CHANNELS", channels_at_once)
    monkeypatch.setattr(fourier_convolution, "_RESULTS", results_at_once)
    monkeypatch.setattr(fourier_tiles, "_FITTED", 2)
    images, kernels, gradient, stride = drawn((7, 48, 9, 9, 16, 4, 1), torch.float64)
    wanted = exact(images, kernels, gradient, stride)
    # Of pixels with their channels side by side some channels are taken as they lie.
    for order in (torch.contiguous_format, torch.channels_last):
        given = [x.to(memory_format=order) for x in (images, kernels, gradient)]
        for want, got in zip(wanted, fast(*given, cut, torch.float64), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_any_order_in_memory_is_taken() -> None:
    images, kernels, gradient, _ = drawn((3, 16, 20, 20, 32, 9, 2), torch.float64)
    cut = Cut(10, 6, (1, 1), 5, 2)
    wanted = fast(images, kernels, gradient, cut, torch.float64)
    last = [x.to(memory_format=torch.channels_last) for x in (images, kernels, gradient)]
    wide = [x.repeat_interleave(2, 1)[:, ::2] for x in (images, kernels, gradient)]
    for others in (last, wide):
        for want, got in zip(wanted, fast(*others, cut, torch.float64), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_come_each_time(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        images, kernels, gradient, _ = drawn((5, 32, 20, 20, 32, 9, 2), torch.float32)
        cut = Cut(10, 6, (1, 1), 5, 2)
        first, second = (fast(images, kernels, gradient, cut, torch.float32) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_training_goes_on_after_an_evaluation_that_took_more_memory() -> None:
    images, kernels, gradient, _ = drawn((3, 48, 20, 20, 64, 9, 2), torch.float32)
    cut = Cut(10, 6, (1, 1), 5, 2)
    _rooms.of.clear()
    with torch.inference_mode():
        correlate(images, kernels, cut, torch.float32)
        correlate(images.double(), kernels.double(), cut, torch.float64)
    factors = [factor.requires_grad_() for factor in (images, kernels)]
    fast(*factors, gradient, cut, torch.float32)


def test_where_it_pays() -> None:
    """The paper's PrimaryCaps from a few images on; neither first layers nor pixels alone."""
    primary = (256, 256, 9, 9)
    assert plan((128, 256, 20, 20), primary, 2) == Cut(10, 6, (1, 1), 5, 2)
    assert plan((128, 256, 20, 20), primary, 2, rate=2.1) == Cut(10, 6, (1, 1), 5, 2)
    assert plan((1, 256, 20, 20), primary, 2) is None
    assert plan((128, 1, 28, 28), (256, 1, 9, 9), 1) is None
    assert plan((128, 256, 28, 28), (256, 256, 1, 1), 1) is None
    assert plan((128, 24, 20, 20), (24, 24, 9, 9), 2) is None
    large = plan((128, 256, 100, 100), (256, 256, 5, 5), 1)
    assert large is not None
    assert large.period <= 14


def test_a_quarter_of_the_products_is_made() -> None:
    assert kept(10) == 148
    assert kept(9) == 121
    assert 4 * kept(10) * 4.5 < 36 * 81


def test_convolve_takes_it_and_gives_what_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    images, kernels, gradient, stride = drawn((32, 128, 20, 20, 128, 9, 2), torch.float32)
    calls: list[Cut] = []

    taken = fourier_convolution.correlate
    monkeypatch.setattr(
        fourier_convolution,
        "correlate",
        lambda *arguments: (calls.append(arguments[2]), taken(*arguments))[1],
    )
    factors = [factor.requires_grad_() for factor in (images, kernels)]
    bias = torch.linspace(-1, 1, 128, requires_grad=True)
    for rectified in (False, True):
        plain = F.conv2d(*factors, bias, stride)
        wanted = plain.relu() if rectified else plain
        got = convolve(*factors, bias, stride, reduced=False, rectified=rectified)
        pairs = zip(
            (got, *torch.autograd.grad(got, [*factors, bias], gradient)),
            (wanted, *torch.autograd.grad(wanted, [*factors, bias], gradient)),
            strict=True,
        )
        for one, other in pairs:
            assert (one - other).norm() < 1e-5 * other.norm()
    assert len(calls) == 2


def test_reduced_factors_are_rounded_and_sums_are_not() -> None:
    images, kernels, gradient, stride = drawn((128, 128, 20, 20, 128, 9, 2), torch.float32)
    rate = convolution._BFLOAT16_RATE
    assert plan(tuple(images.shape), tuple(kernels.shape), stride, rate) is not None
    rounded = [x.bfloat16().float() for x in (images, kernels, gradient)]
    wanted = exact(*rounded, stride)
    factors = [factor.requires_grad_() for factor in (images, kernels)]
    got = convolve(*factors, None, stride, reduced=True)
    found = [got, *torch.autograd.grad(got, factors, gradient)]
    for want, one in zip(wanted, found, strict=True):
        assert (one - want).norm() < 1e-6 * want.norm()
