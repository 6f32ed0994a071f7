"""Where float32 could leave its range: outputs and gradients stay finite and sensible."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from em_cases import CASES, CODE, TEXT, WAYS, Case, Inputs, apart, inputs_of, ours, outcome
from torch import Tensor

from capsrepro.models.em_routing import EMRouting

# The values of the papers, unlike those of em_cases.
_TEXT = replace(TEXT, inverse_temperature=0.01, variance_floor=1e-6)
AS_PUBLISHED = {
    "text": _TEXT,
    "text-mean": replace(_TEXT, assignment="mean"),
    "code": replace(CODE, inverse_temperature=0.01, variance_floor=5e-4),
    "mixing": replace(_TEXT, activation="mixing-proportion"),
}
EVERY_WAY = [
    pytest.param(how, way, id=f"{name}-{way}") for name, how in AS_PUBLISHED.items() for way in WAYS
]
BORDERS = CASES["borders"]


def finite_outcome(
    case: Case, how: EMRouting, way: str, change: Callable[[Inputs], object]
) -> dict[str, Tensor]:
    inputs = inputs_of(case).cast(torch.float32)
    with torch.no_grad():
        change(inputs)
    results = outcome(ours(case, how, inputs, way=way), inputs)
    for name, values in results.items():
        assert values.isfinite().all(), name
    activations = results["activations"]
    assert ((activations >= 0) & (activations <= 1)).all()
    return results


def all_votes_equal(inputs: Inputs) -> None:
    inputs.poses.fill_(1)
    inputs.transforms.copy_(torch.eye(4)[:, None, :].expand_as(inputs.transforms))


def activations_of(value: float) -> Callable[[Inputs], object]:
    return lambda inputs: inputs.activations.fill_(value)


def half_are_off(inputs: Inputs) -> None:
    inputs.activations[:, ::2], inputs.activations[:, 1::2] = 0, 1


def one_corner_is_on(inputs: Inputs) -> None:
    """Most parents see nothing but children that are off."""
    inputs.activations.fill_(0)
    inputs.activations[:, -1] = 1


def poses_times(factor: float) -> Callable[[Inputs], object]:
    return lambda inputs: inputs.poses.mul_(factor)


def one_is_far_off(inputs: Inputs) -> None:
    """All other votes are equal, so that σ is the floor and this child a million σ away."""
    all_votes_equal(inputs)
    middle = inputs.poses.shape[1] // 2
    inputs.poses[:, middle, 0], inputs.activations[:, middle, 0] = 1e3, 0


def betas_times(factor: float) -> Callable[[Inputs], object]:
    def change(inputs: Inputs) -> None:
        inputs.beta_a.mul_(factor)
        inputs.beta_u.mul_(factor)

    return change


EXTREMES = {
    "all votes equal": all_votes_equal,
    "nobody is on": activations_of(0),
    "hardly anybody is on": activations_of(1e-38),
    "masses as small as epsilon": activations_of(1e-7),
    "everybody is on": activations_of(1),
    "half are off": half_are_off,
    "one corner is on": one_corner_is_on,
    "poses in thousands": poses_times(1e4),
    "poses in billions": poses_times(1e9),
    "poses of nothing": poses_times(0),
    "one is far off": one_is_far_off,
    "betas in thousands": betas_times(1e4),
}


@pytest.mark.parametrize(("how", "way"), EVERY_WAY)
@pytest.mark.parametrize("name", ["borders", "classes"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_stay_finite(extreme: str, name: str, how: EMRouting, way: str) -> None:
    finite_outcome(CASES[name], how, way, EXTREMES[extreme])


@pytest.mark.parametrize(("how", "way"), EVERY_WAY)
def test_one_child_per_parent_stays_finite(how: EMRouting, way: str) -> None:
    case = Case(side=2, kernel=1, stride=1, children=1, parents=2)
    results = finite_outcome(case, how, way, lambda _: None)
    # All mass there is goes to the mean: it is the vote.
    if how.new_share == 1:
        inputs = inputs_of(case).cast(torch.float32)
        votes = torch.einsum("bxirk,zikjc->bxjrc", inputs.poses, inputs.transforms)
        torch.testing.assert_close(results["poses"], votes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("how", "way"), EVERY_WAY)
def test_thousands_of_children_stay_finite(how: EMRouting, way: str) -> None:
    case = Case(side=12, kernel=12, stride=1, is_class_layer=True, children=32, parents=3)
    inputs = inputs_of(case)
    assert inputs.activations.numel() == 4608
    got = finite_outcome(case, how, way, lambda _: None)
    exact = ours(case, how, inputs)
    assert apart(got["poses"], exact[0]) < 1e-3
    torch.testing.assert_close(got["activations"].double(), exact[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("how", "way"), EVERY_WAY)
def test_children_that_are_off_do_not_move_poses(how: EMRouting, way: str) -> None:
    got = finite_outcome(BORDERS, how, way, half_are_off)

    def and_elsewhere(inputs: Inputs) -> None:
        half_are_off(inputs)
        inputs.poses[:, ::2] = -7

    other = finite_outcome(BORDERS, how, way, and_elsewhere)
    assert torch.equal(got["poses"], other["poses"])
    assert torch.equal(got["activations"], other["activations"])


@pytest.mark.parametrize("how", [AS_PUBLISHED["text"], AS_PUBLISHED["code"]])
def test_float32_is_float64_with_the_values_of_the_papers(how: EMRouting) -> None:
    inputs = inputs_of(CASES["overlaps"])
    single = Inputs(*(x.float() for x in inputs))
    for got, want in zip(
        ours(CASES["overlaps"], how, single), ours(CASES["overlaps"], how, inputs), strict=True
    ):
        assert apart(got, want) < 1e-3
