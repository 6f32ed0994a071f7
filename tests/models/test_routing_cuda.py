import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capsrepro.models.gpu import routing_cuda
from capsrepro.models.gpu.routing_cuda import fused_dynamic_routing, supported
from capsrepro.models.routing import factored_dynamic_routing

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def differences() -> dict[str, list[float]]:
    """Of the interpreted kernels from the plain routing.

    Triton reads the variable when it is imported, hence a process of its own.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    program = Path(__file__).with_name("interpreted_routing.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_interpreted_kernels_are_the_plain_routing_gradients_included(
    differences: dict[str, list[float]], iterations: int
) -> None:
    cases = [found for name, found in differences.items() if name.startswith(f"{iterations} ")]
    assert len(cases) == (1 if iterations == 5 else 4)
    for case in cases:
        assert len(case) in (3, 4)
        assert max(case) < 1e-9


@pytest.mark.slow
def test_interpreted_kernels_keep_float32(differences: dict[str, list[float]]) -> None:
    assert max(differences["float32"]) < 1e-5


def inputs_of(B: int, J: int, E: int, I: int, D: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    children = torch.randn(B, E, I, generator=generator) / E**0.5
    transforms = 0.1 * torch.randn(J, E, I, D, generator=generator)
    bias = torch.full((J, D), 0.1)
    return [x.to(device).requires_grad_() for x in (children, transforms, bias)]


def outcome(function, inputs: list[Tensor], iterations: int, **keys) -> list[Tensor]:
    """The parents, and the gradients of one arbitrary number made of them."""
    parents = function(inputs[0], inputs[1], iterations, bias_JD=inputs[2], **keys)
    weights = torch.randn(parents.shape, generator=torch.Generator().manual_seed(1))
    total = (parents * weights.to(parents)).sum()
    return [parents, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("compiler", [True, False])
def test_on_the_processor_it_is_the_best_there_is(
    compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler:
        pytest.importorskip("llvmlite", reason="loops are compiled by llvmlite")
        from capsrepro.models.cpu.routing_cpu import compiled_dynamic_routing as best
    else:
        monkeypatch.setattr(routing_cuda, "can_compile", lambda _: False)
        from capsrepro.models.routing import factored_dynamic_routing as best
    inputs = inputs_of(3, 2, 4, 5, 16, "cpu")
    assert not supported(*inputs[:2])
    keys = {"gradient": "detached", "none_of_the_above": True}
    fused, wanted = (outcome(f, inputs, 3, **keys) for f in (fused_dynamic_routing, best))
    assert all(map(torch.equal, fused, wanted))


@pytest.mark.gpu
@ON_CUDA
def test_what_the_kernels_do_not_take_is_left_to_the_factored_routing() -> None:
    for shape, dtype in (((3, 2, 6, 5, 16), torch.float32), ((3, 2, 8, 5, 16), torch.float64)):
        children, transforms, bias = (x.detach().to(dtype) for x in inputs_of(*shape, "cuda"))
        assert not supported(children, transforms)
        parents = [
            function(children, transforms, 3, bias_JD=bias)
            for function in (fused_dynamic_routing, factored_dynamic_routing)
        ]
        assert torch.equal(*parents)


MNIST, RAGGED, WIDE = (128, 10, 8, 1152, 16), (37, 11, 8, 1001, 16), (5, 3, 16, 33, 32)


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize(
    ("size", "iterations", "gradient", "none_of_the_above"),
    [
        *itertools.product([RAGGED], [1, 2, 3], ["full", "detached"], [False, True]),
        *itertools.product([MNIST], [3, 10], ["full"], [False]),
        (WIDE, 3, "full", True),
    ],
)
def test_kernels_are_as_exact_as_float32(
    size: tuple[int, ...], iterations: int, gradient: str, none_of_the_above: bool
) -> None:
    inputs = inputs_of(*size, "cuda")
    assert supported(*inputs[:2])
    keys = {"gradient": gradient, "none_of_the_above": none_of_the_above}
    fused = outcome(fused_dynamic_routing, inputs, iterations, **keys)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for got, want in zip(
        fused, outcome(factored_dynamic_routing, exact, iterations, **keys), strict=True
    ):
        assert (got - want).norm() < 1e-5 * want.norm()


@pytest.mark.gpu
@ON_CUDA
def test_kernels_give_the_same_bits_each_time_and_from_a_graph() -> None:
    inputs = inputs_of(*MNIST, "cuda")
    weights = torch.randn(128, 10, 16, device="cuda")

    def step() -> list[Tensor]:
        parents = fused_dynamic_routing(*inputs[:2], 3, bias_JD=inputs[2])
        return [parents, *torch.autograd.grad(parents, inputs, weights)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first, second = step(), step()
    torch.cuda.current_stream().wait_stream(side)
    assert all(map(torch.equal, first, second))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    graph.replay()
    assert all(map(torch.equal, first, replayed))


@pytest.mark.gpu
@ON_CUDA
def test_parents_without_gradient_are_those_of_training() -> None:
    inputs = inputs_of(*MNIST, "cuda")
    with torch.no_grad():
        alone = fused_dynamic_routing(*inputs[:2], 3, bias_JD=inputs[2])
    trained = fused_dynamic_routing(*inputs[:2], 3, bias_JD=inputs[2])
    assert not alone.requires_grad
    assert torch.equal(alone, trained)
