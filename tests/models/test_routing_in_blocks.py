"""Routing by blocks of children against Procedure 1, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capsrepro.models.cpu import routing_in_blocks as module
from capsrepro.models.cpu.routing_in_blocks import routing_in_blocks
from capsrepro.models.routing import dynamic_routing, factored_dynamic_routing


def drawn(children: int, images: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Children_BEI, transforms_JEID and bias_JD."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(images, 3, children), (4, 3, children, 6), (4, 6)]
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def outcome(parents: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The parents, and the gradients of one arbitrary number made of them."""
    generator = torch.Generator().manual_seed(6)
    weights = torch.randn(parents.shape, generator=generator).to(parents.dtype)
    return [parents, *torch.autograd.grad((parents * weights).sum(), inputs)]


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("gradient", ["full", "detached"])
@pytest.mark.parametrize("none_of_the_above", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("children", [5, 64, 75])
def test_it_is_procedure_1_gradients_included(
    monkeypatch: pytest.MonkeyPatch,
    iterations: int,
    gradient: str,
    none_of_the_above: bool,
    with_bias: bool,
    children: int,
) -> None:
    # Blocks of 16 children: less than one, four, and five of which the last is filled up.
    monkeypatch.setattr(module, "_BLOCK", 2 * 4 * 3 * 16)
    children_BEI, transforms_JEID, bias = inputs = drawn(children)
    inputs = inputs[: 3 if with_bias else 2]
    keys = {
        "bias_JD": bias if with_bias else None,
        "gradient": gradient,
        "none_of_the_above": none_of_the_above,
    }
    votes = torch.einsum("bei,jeid->bijd", children_BEI, transforms_JEID)
    wanted = outcome(dynamic_routing(votes, iterations, **keys), inputs)
    fast = routing_in_blocks(children_BEI, transforms_JEID, iterations, **keys)
    for want, got in zip(wanted, outcome(fast, inputs), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("none_of_the_above", [False, True])
def test_gradients_are_those_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, none_of_the_above: bool
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2 * 2 * 2 * 2)
    children, transforms, bias = (x.detach() for x in drawn(3))
    inputs = [children[:, :2], transforms[:2, :2, :, :3], bias[:2, :3]]

    def routed(children_BEI: Tensor, transforms_JEID: Tensor, bias_JD: Tensor) -> Tensor:
        return routing_in_blocks(
            children_BEI, transforms_JEID, 3, bias_JD=bias_JD, none_of_the_above=none_of_the_above
        )

    assert torch.autograd.gradcheck(routed, [x.clone().requires_grad_() for x in inputs])


def test_float32_is_as_exact_as_the_plain_one() -> None:
    inputs = drawn(96, 8, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for route in (routing_in_blocks, factored_dynamic_routing):
        wanted = outcome(factored_dynamic_routing(*exact[:2], 3), exact[:2])
        for want, got in zip(wanted, outcome(route(*inputs[:2], 3), inputs[:2]), strict=True):
            error = (got - want).abs().max() / want.abs().max()
            assert error.detach() < 1e-5


def test_one_image_or_many_take_the_same_route() -> None:
    children, transforms, bias = (x.detach() for x in drawn(40, 7))
    together = routing_in_blocks(children, transforms, 3, bias_JD=bias)
    alone = [routing_in_blocks(image[None], transforms, 3, bias_JD=bias) for image in children]
    torch.testing.assert_close(together, torch.cat(alone))


def test_frozen_matrices_leave_the_children_their_gradient() -> None:
    children, transforms, _ = drawn(40)
    (want, _) = torch.autograd.grad(
        routing_in_blocks(children, transforms, 3).square().sum(), [children, transforms]
    )
    (got,) = torch.autograd.grad(
        routing_in_blocks(children, transforms.detach(), 3).square().sum(), [children]
    )
    assert torch.equal(got, want)


def test_the_same_bits_every_time() -> None:
    inputs = drawn(200, 16, torch.float32)[:2]
    first, second = (outcome(routing_in_blocks(*inputs, 3), inputs) for _ in range(2))
    assert all(map(torch.equal, first, second))
