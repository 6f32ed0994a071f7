"""What routing changes, against Procedure 1 called anew for every number of iterations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_capsnets
import torch
from torch import Tensor

from capsrepro.evaluation.routing_dynamics import measure_routing, routing_changes
from capsrepro.models.routing import dynamic_routing

NONE_OF_THE_ABOVE = pytest.mark.parametrize("none_of_the_above", [False, True])


def small_case(parents: int = 4, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Children_BEI, transforms_JEID and bias_JD in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5), (parents, 3, 5, 6), (parents, 6))
    children, transforms, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return children, scale * transforms, bias


def expected_changes(
    votes_BIJD: Tensor, iterations: int, bias_JD: Tensor | None, none_of_the_above: bool
) -> list[list[float]]:
    """From the parents after 1, 2, … iterations; the softmax by exponentials and loops."""
    B, I, J, _ = votes_BIJD.shape
    logits, rows = torch.zeros(B, I, J, dtype=votes_BIJD.dtype), []
    before_BJD = torch.zeros_like(votes_BIJD[:, 0])
    couplings = []
    for iteration in range(1, iterations + 1):
        shares = logits.exp()
        total = shares.sum(2, keepdim=True) + (1 if none_of_the_above else 0)
        nowhere = 1 / total[..., 0]
        couplings.append(shares / total)
        entropy = -(couplings[-1] * couplings[-1].log()).sum(2)
        if none_of_the_above:
            entropy -= nowhere * nowhere.log()
        parents_BJD = dynamic_routing(
            votes_BIJD, iteration, bias_JD=bias_JD, none_of_the_above=none_of_the_above
        )
        agreement = (votes_BIJD * parents_BJD[:, None]).sum(3)
        change = (votes_BIJD * (parents_BJD - before_BJD)[:, None]).sum(3)
        moved = couplings[-1] - couplings[max(iteration - 2, 0)]
        rows.append([float(x.abs().mean()) for x in (agreement, change, moved, entropy)])
        logits, before_BJD = logits + agreement, parents_BJD
    return rows


@pytest.mark.parametrize("with_bias", [False, True])
@NONE_OF_THE_ABOVE
def test_changes_are_those_of_procedure_1(with_bias: bool, none_of_the_above: bool) -> None:
    children, transforms, bias = small_case()
    given = bias if with_bias else None
    votes = torch.einsum("bei,jeid->bijd", children, transforms)
    expected = expected_changes(votes, 6, given, none_of_the_above)
    found = routing_changes(children, transforms, 6, given, none_of_the_above=none_of_the_above)
    assert found.shape == (6, 4)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    # Rows do not depend on how many follow.
    torch.testing.assert_close(
        routing_changes(children, transforms, 2, given, none_of_the_above=none_of_the_above),
        found[:2],
    )


@NONE_OF_THE_ABOVE
def test_routing_begins_with_equal_shares(none_of_the_above: bool) -> None:
    children, transforms, _ = small_case()
    first, second = routing_changes(children, transforms, 2, none_of_the_above=none_of_the_above)
    assert first[3].item() == pytest.approx(math.log(5 if none_of_the_above else 4))
    assert first[2] == 0
    assert first[1] == first[0]
    assert second[3] < first[3]
    assert second[2] > 0


def test_a_single_parent_leaves_nothing_to_route() -> None:
    children, transforms, _ = small_case(parents=1)
    found = routing_changes(children, transforms, 4)
    assert (found[:, 0] == found[0, 0]).all()
    assert (found[1:, 1:] == 0).all()
    assert found[0, 3] == 0


def test_logits_go_on_growing_when_routing_has_settled() -> None:
    children, transforms, _ = small_case(scale=3)
    last = routing_changes(children, transforms, 300)[-1]
    assert last[0] > 0.1
    assert last[1] < 1e-6
    assert last[2] < 1e-6


def test_certain_couplings_have_no_entropy() -> None:
    children, transforms, _ = small_case(scale=1e4)
    for dtype in (torch.float32, torch.float64):
        found = routing_changes(children.to(dtype), transforms.to(dtype), 50)
        assert found.isfinite().all()
        assert found[-1, 3] < 0.01


@pytest.mark.parametrize(
    "changes",
    [{}, {"class_bias": True}, {"none_of_the_above": True}, {"routing_iterations": 1}],
    ids=["plain", "bias", "none of the above", "one iteration"],
)
@pytest.mark.parametrize("batch_size", [9, 60])
def test_measured_as_one_image_at_a_time(changes: dict[str, object], batch_size: int) -> None:
    # Batches are cut into slices of 25, and the last batch and slice are smaller.
    model = small_capsnets.capsnet(**changes).double()
    images = small_capsnets.random_images(60)
    split = small_capsnets.stored(images, np.zeros(60), batch_size)
    with torch.no_grad():
        children = model.double().primary_capsules(torch.from_numpy(images).double() / 255)
        votes = torch.einsum("bei,jeid->bijd", children, model.transforms_KEID)
        none_of_the_above = bool(changes.get("none_of_the_above"))
        rows = [expected_changes(vote[None], 3, model.bias_KD, none_of_the_above) for vote in votes]
    found = measure_routing(model.float().train(), split, 3)
    assert not model.training
    assert found.pop("iteration") == [1, 2, 3]
    names = ["logit_change", "agreement_change", "coupling_change", "coupling_entropy_nat"]
    assert list(found) == names
    for name, curve in zip(names, np.mean(rows, axis=0).T, strict=True):
        assert found[name] == pytest.approx(curve.tolist(), rel=1e-5, abs=1e-7), name
    assert np.std(rows, axis=0)[1:].min() > 1e-4  # images differ, so that their weights matter


def test_measuring_changes_nothing() -> None:
    model = small_capsnets.capsnet()
    split = small_capsnets.stored(small_capsnets.random_images(30), np.zeros(30))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert measure_routing(model, split, 4) == measure_routing(model, split, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.routing_iterations == 3
    # Training goes on afterwards.
    batch = next(iter(split))
    model.train().objective(*batch).loss.backward()
    assert model.transforms_KEID.grad is not None
