"""Compiled loops of routing against Procedure 1, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capsrepro.models.routing import dynamic_routing, factored_dynamic_routing

pytest.importorskip("llvmlite", reason="loops are compiled by llvmlite")

from capsrepro.models.cpu.routing_cpu import compiled_dynamic_routing


def drawn(
    children: int, images: int = 2, dtype: torch.dtype = torch.float64, width: int = 6
) -> list[Tensor]:
    """Children_BEI, transforms_JEID and bias_JD."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(images, 3, children), (4, 3, children, width), (4, width)]
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
@pytest.mark.parametrize(("children", "images", "width"), [(5, 1, 6), (21, 19, 17)])
def test_it_is_procedure_1_gradients_included(
    iterations: int,
    gradient: str,
    none_of_the_above: bool,
    with_bias: bool,
    children: int,
    images: int,
    width: int,
) -> None:
    # Fewer children than parts, one image, parents shorter than a vector; and none a multiple.
    children_BEI, transforms_JEID, bias = inputs = drawn(children, images, width=width)
    inputs = inputs[: 3 if with_bias else 2]
    keys = {
        "bias_JD": bias if with_bias else None,
        "gradient": gradient,
        "none_of_the_above": none_of_the_above,
    }
    votes = torch.einsum("bei,jeid->bijd", children_BEI, transforms_JEID)
    wanted = outcome(dynamic_routing(votes, iterations, **keys), inputs)
    fast = compiled_dynamic_routing(children_BEI, transforms_JEID, iterations, **keys)
    for want, got in zip(wanted, outcome(fast, inputs), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("none_of_the_above", [False, True])
def test_gradients_are_those_of_finite_differences(none_of_the_above: bool) -> None:
    children, transforms, bias = (x.detach() for x in drawn(3))
    inputs = [children[:, :2], transforms[:2, :2, :, :3], bias[:2, :3]]

    def routed(children_BEI: Tensor, transforms_JEID: Tensor, bias_JD: Tensor) -> Tensor:
        return compiled_dynamic_routing(
            children_BEI, transforms_JEID, 3, bias_JD=bias_JD, none_of_the_above=none_of_the_above
        )

    assert torch.autograd.gradcheck(routed, [x.clone().requires_grad_() for x in inputs])


def test_float32_is_as_exact_as_the_plain_one() -> None:
    inputs = drawn(96, 8, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for route in (compiled_dynamic_routing, factored_dynamic_routing):
        wanted = outcome(factored_dynamic_routing(*exact[:2], 3), exact[:2])
        for want, got in zip(wanted, outcome(route(*inputs[:2], 3), inputs[:2]), strict=True):
            error = (got - want).abs().max() / want.abs().max()
            assert error.detach() < 1e-5


def test_one_image_or_many_take_the_same_route() -> None:
    children, transforms, bias = (x.detach() for x in drawn(40, 7))
    together = compiled_dynamic_routing(children, transforms, 3, bias_JD=bias)
    alone = [
        compiled_dynamic_routing(image[None], transforms, 3, bias_JD=bias) for image in children
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_frozen_matrices_leave_the_children_their_gradient() -> None:
    children, transforms, _ = drawn(40)
    (want, _) = torch.autograd.grad(
        compiled_dynamic_routing(children, transforms, 3).square().sum(), [children, transforms]
    )
    (got,) = torch.autograd.grad(
        compiled_dynamic_routing(children, transforms.detach(), 3).square().sum(), [children]
    )
    assert torch.equal(got, want)


def test_the_same_bits_every_time() -> None:
    inputs = drawn(200, 16, torch.float32)[:2]
    first, second = (outcome(compiled_dynamic_routing(*inputs, 3), inputs) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_neither_the_number_of_threads_nor_who_is_in_the_batch_changes_a_bit() -> None:
    children, transforms = (x.detach() for x in drawn(200, 40, torch.float32)[:2])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compiled_dynamic_routing(children, transforms, 3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][:5], compiled_dynamic_routing(children[:5], transforms, 3))


@pytest.mark.parametrize("gradient", ["full", "detached"])
def test_any_order_in_memory_will_do(gradient: str) -> None:
    inputs = drawn(9, 5)[:2]
    turned = [
        x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in inputs
    ]
    plain, other = (
        outcome(compiled_dynamic_routing(*leaves, 3, gradient=gradient), leaves)
        for leaves in (inputs, turned)
    )
    assert all(map(torch.equal, plain, other))


def test_far_logits_neither_overflow_nor_lose_the_share_of_nowhere() -> None:
    children, transforms = (x.detach() for x in drawn(6, 3, torch.float32)[:2])
    for scale in (1e3, -1e3):
        for none_of_the_above in (False, True):
            keys = {"none_of_the_above": none_of_the_above}
            wanted = factored_dynamic_routing(children * scale, transforms, 2, **keys)
            got = compiled_dynamic_routing(children * scale, transforms, 2, **keys)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_factors_of_two_kinds_are_refused() -> None:
    children, transforms = (x.detach() for x in drawn(6)[:2])
    with pytest.raises(ValueError, match="matrices_IJED"):
        compiled_dynamic_routing(children, transforms.float(), 3)
