"""What no step can beat with the library's own products: its convolutions and matrices alone.

Also how many operations a step has, and how many a second the best matrix product makes here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capsrepro.config import RunSpec
from capsrepro.running.benchmark_naive import naive_model
from capsrepro.running.benchmark_step import Step, made_up_stream
from capsrepro.schema.base import Precision
from capsrepro.training import loop

# Images of the step that is looked at; all shapes and operations grow in proportion to them.
_LOOKED_AT = 2


@dataclass(frozen=True)
class LayerCall:
    """One call of a convolution or fully connected layer in a step.

    Attributes:
        layer: It.
        shape: Of its input, padding included, for one image each.
        needs_input_gradient: False for what the images go into.
    """

    layer: nn.Conv2d | nn.Linear
    shape: tuple[int, ...]
    needs_input_gradient: bool


@dataclass(frozen=True)
class Products:
    """The products of a step.

    Attributes:
        model: Whose layers they are.
        calls: Those of layers, in their order.
        flop_per_image: Multiplications and additions of all matrix products and convolutions,
            forward and backward, with the votes written out.
    """

    model: nn.Module
    calls: tuple[LayerCall, ...]
    flop_per_image: float


def find_products(spec: RunSpec, device: torch.device) -> Products:
    """Watch one naive step of two images."""
    # Imported here: its 70 MiB are not to count among those of a training step.
    from torch.utils.flop_counter import FlopCounterMode

    model = naive_model(spec, device)
    calls: list[LayerCall] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows, *shape = inputs[0].shape
        if isinstance(layer, nn.Conv2d):
            sizes = zip(shape[1:], output.shape[2:], layer.kernel_size, layer.stride, strict=True)
            shape[1:] = [max(size, (out - 1) * stride + k) for size, out, k, stride in sizes]
        full = (rows * spec.protocol.recipe.batch_size // _LOOKED_AT, *shape)
        calls.append(LayerCall(layer, full, inputs[0].requires_grad))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    few = spec.protocol.recipe.model_copy(update={"batch_size": _LOOKED_AT})
    protocol = spec.protocol.model_copy(update={"recipe": few})
    batch = made_up_stream(replace(spec, protocol=protocol), device).batch(0)
    with FlopCounterMode(display=False) as counter:
        model.objective(*batch).loss.backward()  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return Products(model, tuple(calls), counter.get_total_flops() / _LOOKED_AT)


def make_floor_step(products: Products, precision: Precision, device: torch.device) -> Step:
    """The layers of a step alone: forward, and the gradients that the step needs of them.

    At the real shapes and layouts of memory, without biases. The library may take its fastest
    algorithm: it is not asked for the same bits every time.
    """
    loop.set_precision(products.model, precision)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    passes = [_make_pass(call, device) for call in products.calls]

    def step() -> None:
        for forward_and_backward in passes:
            forward_and_backward()

    return step


def _make_pass(call: LayerCall, device: torch.device) -> Step:
    reduced = getattr(call.layer, "precision", "float32") == "bf16"
    dtype = torch.bfloat16 if reduced else torch.float32
    weight = call.layer.weight.detach().to(dtype).requires_grad_()
    inputs = torch.rand(call.shape, device=device).to(dtype)
    if isinstance(call.layer, nn.Conv2d):
        inputs = inputs.to(memory_format=torch.channels_last)
        weight = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
    inputs.requires_grad_(call.needs_input_gradient)
    wanted = [weight, inputs] if call.needs_input_gradient else [weight]

    def product() -> Tensor:
        if isinstance(call.layer, nn.Conv2d):
            return F.conv2d(inputs, weight, None, call.layer.stride)
        return F.linear(inputs, weight)

    d_output = torch.rand_like(product().detach())

    def forward_and_backward() -> None:
        torch.autograd.grad(product(), wanted, d_output)

    return forward_and_backward


class MatrixPeak:
    """The fastest matrix product of a precision, found once among a few and timed again later.

    Args:
        precision: Of the factors; sums are float32 in all of them.
        device: Where.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self._best = max(_products(precision, device), key=lambda way: self._speed(*way))

    def flop_per_s(self) -> float:
        """Multiplications and additions a second, now."""
        return self._speed(*self._best)

    def _speed(self, size: int, product: Callable[[], Tensor]) -> float:
        """Of a product of two matrices of this many rows and columns; best of a few."""
        reduced = "high" if self.precision == "tf32" else "highest"
        torch.set_float32_matmul_precision(reduced)
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        product()
        repeats, times = (3, 3) if self.device.type == "cuda" else (1, 2)
        return max(2 * size**3 * repeats / self._seconds(product, repeats) for _ in range(times))

    def _seconds(self, product: Callable[[], Tensor], repeats: int) -> float:
        synchronise(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            product()
        synchronise(self.device)
        return time.perf_counter() - started


def _products(
    precision: Precision, device: torch.device
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """Square products: as matrices in three layouts, and on a CPU as a 1×1 convolution.

    There convolutions and matrix products come from different libraries.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for size in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        yield size, lambda left=left, right=right: left @ right  # type: ignore[misc]
        yield size, lambda left=left, right=right: left @ right.t()  # type: ignore[misc]
        yield size, lambda left=left, right=right: left.t() @ right  # type: ignore[misc]
        if device.type == "cuda":
            continue
        images = left.t().reshape(1, size, size // 32, 32)
        images = images.to(memory_format=torch.channels_last)
        kernel = right.view(size, size, 1, 1).to(memory_format=torch.channels_last)
        yield size, lambda x=images, kernel=kernel: F.conv2d(x, kernel)  # type: ignore[misc]


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
