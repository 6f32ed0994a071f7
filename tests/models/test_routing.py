import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capsrepro.models.routing import dynamic_routing, factored_dynamic_routing, length, squash


def procedure_1(votes: Tensor, iterations: int, bias: Tensor | None = None) -> Tensor:
    """Procedure 1 of the paper, line by line, one scalar at a time: slow and beyond doubt."""
    images, children, parents, _ = votes.shape
    results = []
    for b in range(images):
        logits = [
            [torch.zeros((), dtype=votes.dtype) for _ in range(parents)] for _ in range(children)
        ]
        for iteration in range(iterations):
            v = []
            for j in range(parents):
                s = torch.zeros_like(votes[b, 0, j])
                for i in range(children):
                    total = sum(torch.exp(logit) for logit in logits[i])
                    s = s + torch.exp(logits[i][j]) / total * votes[b, i, j]
                if bias is not None:
                    s = s + bias[j]
                norm = torch.sqrt((s * s).sum())
                v.append(norm**2 / (1 + norm**2) * s / norm)
            if iteration < iterations - 1:
                for i in range(children):
                    for j in range(parents):
                        logits[i][j] = logits[i][j] + (votes[b, i, j] * v[j]).sum()
        results.append(torch.stack(v))
    return torch.stack(results)


def small_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Children_BEI, transforms_JEID and bias_JD in float64."""
    generator = torch.Generator().manual_seed(seed)
    children = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    transforms = torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64)
    return children, transforms, torch.randn(4, 6, generator=generator, dtype=torch.float64)


def votes_of(children_BEI: Tensor, transforms_JEID: Tensor) -> Tensor:
    return torch.einsum("bei,jeid->bijd", children_BEI, transforms_JEID)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("with_bias", [False, True])
def test_routing_is_procedure_1_gradients_included(iterations: int, with_bias: bool) -> None:
    children, transforms, bias = small_case()
    inputs = [x.clone().requires_grad_() for x in (children, transforms)]
    chosen = bias if with_bias else None
    weights = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def outcome(parents: Tensor) -> list[Tensor]:
        return [parents, *torch.autograd.grad((parents * weights).sum(), inputs)]

    expected = outcome(procedure_1(votes_of(*inputs), iterations, chosen))
    clear = outcome(dynamic_routing(votes_of(*inputs), iterations, bias_JD=chosen))
    fast = outcome(factored_dynamic_routing(*inputs, iterations, bias_JD=chosen))
    for want, *others in zip(expected, clear, fast, strict=True):
        for other in others:
            torch.testing.assert_close(other, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_detached_gradient_treats_couplings_as_constants(iterations: int) -> None:
    children, transforms, _ = small_case()
    full = factored_dynamic_routing(children, transforms, iterations)
    inputs = [x.clone().requires_grad_() for x in (children, transforms)]
    grads = []
    for parents in (
        dynamic_routing(votes_of(*inputs), iterations, gradient="detached"),
        factored_dynamic_routing(*inputs, iterations, gradient="detached"),
    ):
        torch.testing.assert_close(parents, full)
        grads.append(torch.autograd.grad(parents.sum(), inputs))
    for clear, fast in zip(*grads, strict=True):
        torch.testing.assert_close(clear, fast)
    through = torch.autograd.grad(factored_dynamic_routing(*inputs, iterations).sum(), inputs)
    same = torch.allclose(through[0], grads[0][0])
    assert same == (iterations == 1)


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


def test_images_do_not_share_routing() -> None:
    children, transforms, _ = small_case()
    together = factored_dynamic_routing(children, transforms, 3)
    alone = torch.cat([factored_dynamic_routing(c[None], transforms, 3) for c in children])
    torch.testing.assert_close(together, alone)


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
