import math

import procedure_1
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capsrepro.models.routing import dynamic_routing, factored_dynamic_routing, length, squash


def small_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Children_BEI, transforms_JEID and bias_JD in float64."""
    generator = torch.Generator().manual_seed(seed)
    children = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    transforms = torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64)
    return children, transforms, torch.randn(4, 6, generator=generator, dtype=torch.float64)


def votes_of(children_BEI: Tensor, transforms_JEID: Tensor) -> Tensor:
    return torch.einsum("bei,jeid->bijd", children_BEI, transforms_JEID)


ITERATIONS = pytest.mark.parametrize("iterations", [1, 2, 3, 5])
WITH_BIAS = pytest.mark.parametrize("with_bias", [False, True])
NONE_OF_THE_ABOVE = pytest.mark.parametrize("none_of_the_above", [False, True])


def outcome(parents: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The parents, and the gradients of one arbitrary number made of them."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(parents.shape, generator=generator, dtype=parents.dtype)
    return [parents, *torch.autograd.grad((parents * weights).sum(), inputs)]


@ITERATIONS
@WITH_BIAS
@NONE_OF_THE_ABOVE
def test_routing_is_procedure_1_gradients_included(
    iterations: int, with_bias: bool, none_of_the_above: bool
) -> None:
    inputs = [x.requires_grad_() for x in small_case()][: 3 if with_bias else 2]
    children, transforms = inputs[:2]
    bias = inputs[2] if with_bias else None
    printed = procedure_1.route_all(
        procedure_1.votes(children, transforms), iterations, bias, none_of_the_above
    )
    keys = {"bias_JD": bias, "none_of_the_above": none_of_the_above}
    clear = dynamic_routing(votes_of(children, transforms), iterations, **keys)
    fast = factored_dynamic_routing(children, transforms, iterations, **keys)
    for want, *others in zip(*(outcome(v, inputs) for v in (printed, clear, fast)), strict=True):
        for other in others:
            torch.testing.assert_close(other, want, rtol=1e-6, atol=1e-7)


@ITERATIONS
@WITH_BIAS
@NONE_OF_THE_ABOVE
def test_detached_gradient_treats_couplings_as_constants(
    iterations: int, with_bias: bool, none_of_the_above: bool
) -> None:
    inputs = [x.requires_grad_() for x in small_case()][: 3 if with_bias else 2]
    children, transforms = inputs[:2]
    keys = {
        "bias_JD": inputs[2] if with_bias else None,
        "none_of_the_above": none_of_the_above,
    }
    full = outcome(factored_dynamic_routing(children, transforms, iterations, **keys), inputs)
    clear, fast = (
        outcome(parents, inputs)
        for parents in (
            dynamic_routing(
                votes_of(children, transforms), iterations, gradient="detached", **keys
            ),
            factored_dynamic_routing(children, transforms, iterations, gradient="detached", **keys),
        )
    )
    torch.testing.assert_close(fast[0], full[0])
    for want, other in zip(clear, fast, strict=True):
        torch.testing.assert_close(other, want)
    assert torch.allclose(full[1], fast[1]) == (iterations == 1)


@NONE_OF_THE_ABOVE
@pytest.mark.parametrize("with_votes", [False, True])
def test_gradients_are_those_of_finite_differences(
    with_votes: bool, none_of_the_above: bool
) -> None:
    children, transforms, bias = small_case()
    inputs = [children[:, :2, :3], transforms[:2, :2, :3, :3], bias[:2, :3]]

    def routed(children_BEI: Tensor, transforms_JEID: Tensor, bias_JD: Tensor) -> Tensor:
        keys = {"bias_JD": bias_JD, "none_of_the_above": none_of_the_above}
        if with_votes:
            return dynamic_routing(votes_of(children_BEI, transforms_JEID), 3, **keys)
        return factored_dynamic_routing(children_BEI, transforms_JEID, 3, **keys)

    assert torch.autograd.gradcheck(routed, [x.clone().requires_grad_() for x in inputs])


def as_recorded(
    children_BEI: Tensor, transforms_JEID: Tensor, iterations: int, bias_JD: Tensor | None
) -> Tensor:
    """The operations behind the records of version 0.1, in their order."""
    J, E, I, D = transforms_JEID.shape
    B = len(children_BEI)

    def squashed(sums_JBD: Tensor) -> Tensor:
        if bias_JD is not None:
            sums_JBD = sums_JBD + bias_JD.unsqueeze(1)
        squared = sums_JBD.square().sum(-1, keepdim=True)
        return sums_JBD * (squared / (1 + squared) * (squared + 1e-9).rsqrt())

    matrices_JXD = transforms_JEID.reshape(J, E * I, D)
    all_parents_XK = matrices_JXD.transpose(0, 1).reshape(E * I, J * D)
    flat_BK = children_BEI.reshape(B, E * I) @ all_parents_XK / J
    sums_JBD = flat_BK.view(B, J, D).transpose(0, 1)
    logits_JBI: Tensor | None = None
    for _ in range(1, iterations):
        pulled_JBX = torch.bmm(squashed(sums_JBD), matrices_JXD.transpose(1, 2))
        agreement_JBI = (pulled_JBX.view(J, B, E, I) * children_BEI).sum(2)
        logits_JBI = agreement_JBI if logits_JBI is None else logits_JBI + agreement_JBI
        shares_JBEI = logits_JBI.softmax(dim=0).unsqueeze(2) * children_BEI
        sums_JBD = torch.bmm(shares_JBEI.reshape(J, B, E * I), matrices_JXD)
    return squashed(sums_JBD).transpose(0, 1)


@ITERATIONS
@WITH_BIAS
def test_not_a_bit_has_changed_since_the_first_records(iterations: int, with_bias: bool) -> None:
    """Records are replayed bit for bit, so that the order of the operations is frozen."""
    generator = torch.Generator().manual_seed(2)
    children = torch.randn(16, 8, 72, generator=generator)
    transforms = 0.1 * torch.randn(10, 8, 72, 16, generator=generator)
    bias = torch.full((10, 16), 0.1) if with_bias else None
    inputs = [children.requires_grad_(), transforms.requires_grad_()]
    now = outcome(factored_dynamic_routing(*inputs, iterations, bias_JD=bias), inputs)
    then = outcome(as_recorded(*inputs, iterations, bias), inputs)
    assert all(map(torch.equal, now, then))


def test_a_case_by_hand() -> None:
    # One child votes (3, 4) for one parent: s = (3, 4), |s| = 5, v = 25/26 · (0.6, 0.8).
    one = dynamic_routing(torch.tensor([[[[3.0, 4.0]]]]), 1)
    torch.testing.assert_close(one, torch.tensor([[[25 / 26 * 0.6, 25 / 26 * 0.8]]]))
    # Two children, two parents. Equal votes (1, 0) for parent 0, opposite ones for parent 1:
    # after one round parent 0 has s = (1, 0), v = (1/2, 0) and parent 1 has s = v = 0, so the
    # logits are 1/2 and 0 and the second coupling to parent 0 is e^½/(e^½+1).
    votes = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]]])
    s = 2 * math.exp(0.5) / (math.exp(0.5) + 1)
    expected = torch.tensor([[[s**2 / (1 + s**2), 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(dynamic_routing(votes, 2), expected)


def test_couplings_compete_over_parents_not_children() -> None:
    # A child that agrees with parent 0 alone must take its share from parent 1; normalising over
    # children (a common bug) would leave parent 1 with as much as before.
    votes = torch.zeros(1, 3, 2, 2)
    votes[0, :, 0] = torch.tensor([2.0, 0.0])
    votes[0, :, 1, 1] = torch.tensor([1.0, 1.0, 0.2])
    once, twice = (length(dynamic_routing(votes, r))[0] for r in (1, 2))
    assert twice[0] > once[0]
    assert twice[1] < once[1]


def test_one_iteration_is_the_plain_mean_over_parents() -> None:
    children, transforms, _ = small_case()
    votes = votes_of(children, transforms)
    torch.testing.assert_close(dynamic_routing(votes, 1), squash(votes.sum(1) / 4))
    none = dynamic_routing(votes, 1, none_of_the_above=True)
    torch.testing.assert_close(none, squash(votes.sum(1) / 5))


def test_none_of_the_above_takes_what_fits_no_parent() -> None:
    # A child that fits no parent has logits below 0: its share goes to the category whose logit
    # stays 0. One that fits has a logit far above it and gives everything to its parent.
    votes = torch.zeros(1, 2, 1, 2)
    votes[0, :, 0, 0] = torch.tensor([60.0, -6.0])
    s = length(dynamic_routing(votes, 5, none_of_the_above=True))
    torch.testing.assert_close(s, torch.tensor([[60.0**2 / (1 + 60.0**2)]]))
    torch.testing.assert_close(
        length(dynamic_routing(votes, 5)), torch.tensor([[54.0**2 / (1 + 54.0**2)]])
    )


@NONE_OF_THE_ABOVE
def test_images_do_not_share_routing(none_of_the_above: bool) -> None:
    children, transforms, bias = small_case()
    keys = {"bias_JD": bias, "none_of_the_above": none_of_the_above}
    together = factored_dynamic_routing(children, transforms, 3, **keys)
    alone = [factored_dynamic_routing(c[None], transforms, 3, **keys) for c in children]
    torch.testing.assert_close(together, torch.cat(alone))
    votes = votes_of(children, transforms)
    apart = [dynamic_routing(v[None], 3, **keys) for v in votes]
    torch.testing.assert_close(dynamic_routing(votes, 3, **keys), torch.cat(apart))


def test_order_of_children_and_of_parents_does_not_matter() -> None:
    children, transforms, _ = small_case()
    base = factored_dynamic_routing(children, transforms, 3)
    i, j = torch.randperm(5), torch.randperm(4)
    permuted = factored_dynamic_routing(children[:, :, i], transforms[j][:, :, i], 3)
    torch.testing.assert_close(permuted, base[:, j])


@settings(deadline=None)
@given(st.floats(0, 1e4, width=32), st.integers(1, 16))
def test_squash_keeps_direction_and_shrinks_into_one(scale: float, size: int) -> None:
    direction = torch.ones(size, dtype=torch.float64) / math.sqrt(size)
    squashed = squash(scale * direction)
    norm = scale**2 / (1 + scale**2)
    torch.testing.assert_close(squashed, norm * direction, rtol=1e-5, atol=1e-8)
    assert length(squashed) < 1 + 1e-9


@pytest.mark.parametrize("function", [squash, length])
def test_gradient_at_zero_is_finite(function) -> None:
    zero = torch.zeros(2, 8, requires_grad=True)
    function(zero).sum().backward()
    assert zero.grad is not None
    assert torch.isfinite(zero.grad).all()


def test_squash_along_another_axis() -> None:
    vectors = torch.randn(2, 8, 5)
    torch.testing.assert_close(
        squash(vectors, dim=1), squash(vectors.transpose(1, 2)).transpose(1, 2)
    )
