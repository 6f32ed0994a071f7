"""What public programs got wrong: each mistake, put into the loops, shows, and we do not make it.

Gritzman 2019 names three: one child per parent, the amount of data of a parent, and the competition
between parents at different places. The others are from reading programs.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import em_procedure_1
import pytest
import torch
from em_cases import CASES, CODE, READINGS, TEXT, Case, apart, inputs_of, layer_of, ours, printed
from em_procedure_1 import Capsule, Layer, Pair, Reading
from torch import Tensor

from capsrepro.models import votes as votes_module
from capsrepro.models.capsule_layers import Capsules
from capsrepro.models.cpu import votes_cpu

OVERLAPS = CASES["overlaps"]


@pytest.fixture(autouse=True)
def no_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper divides by Σ R as it is."""
    for module in (votes_module, votes_cpu):
        monkeypatch.setattr(module, "MASS_EPSILON", 0.0)


def largest_difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    return max(apart(a, b) for a, b in zip(one, other, strict=True))


@cache
def right(reading: str) -> tuple[Tensor, Tensor]:
    """Poses and activations of the loops as they are."""
    return printed(OVERLAPS, READINGS[reading], inputs_of(OVERLAPS))[-1]


def only_at_the_same_place(child: Capsule, parent: Capsule, layer: Layer) -> list[Capsule]:
    return [other for other in layer.seen_by[child] if other[:2] == parent[:2]]


def only_of_the_same_type(child: Capsule, parent: Capsule, layer: Layer) -> list[Capsule]:
    return [other for other in layer.seen_by[child] if other[2] == parent[2]]


def among_children(
    layer: Layer,
    means: dict[Capsule, Tensor],
    variances: dict[Capsule, Tensor],
    activations: dict[Capsule, Tensor],
) -> dict[Pair, Tensor]:
    products = {
        (i, j): activations[j] * em_procedure_1.density(vote, means[j], variances[j])
        for (i, j), vote in layer.votes.items()
    }
    return {
        (i, j): product / sum(products[k, j] for k in layer.children_of[j])
        for (i, j), product in products.items()
    }


def shared_among_types(child: Capsule, layer: Layer) -> float:
    return 1 / len({j for _, _, j in layer.children_of})


def shared_among_all_parents_of_the_layer(child: Capsule, layer: Layer) -> float:
    return 1 / len(layer.children_of)


def cost_of_log_variance(variance: Tensor, beta_u: Tensor, mass: Tensor) -> Tensor:
    return (beta_u + variance.log()) * mass


def cost_with_beta_once(variance: Tensor, beta_u: Tensor, mass: Tensor) -> Tensor:
    return (beta_u / variance.numel() + 0.5 * variance.log()) * mass


def cost_without_mass(variance: Tensor, beta_u: Tensor, mass: Tensor) -> Tensor:
    return beta_u + 0.5 * variance.log()


def normal_density(vote: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of each dimension."""
    exponents = -((vote - mean) ** 2) / (2 * variance)
    return exponents.exp() / (2 * math.pi * variance).sqrt()


def densities_summed(vote: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return normal_density(vote, mean, variance).sum()


def density_over_variance(vote: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log σ² for log σ: 1/σ² in front of each dimension."""
    return (normal_density(vote, mean, variance) / variance.sqrt()).prod()


def density_of_sigma(vote: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """σ for σ² in the exponent."""
    return torch.exp(-((vote - mean) ** 2) / (2 * variance.sqrt()) - 0.5 * variance.log()).prod()


def no_activation_of_the_child(share: Tensor | float, activation: Tensor) -> Tensor:
    return share * torch.ones_like(activation)


def temperature_from_nothing(final: float, iteration: int) -> float:
    return final * (1 - 0.95**iteration)


def temperature_at_once(final: float, iteration: int) -> float:
    return final


def entropy_with_log_of_log(
    variance: Tensor, beta_u: Tensor, beta_a: Tensor, mass: Tensor
) -> Tensor:
    """log(σ² ln 2π) for log(2πσ²)."""
    constant = variance.numel() * (math.log(math.log(2 * math.pi)) + 1)
    return mass * (-variance.log().sum() - beta_u * constant) - 5000 * beta_a


def variance_about_the_new_mean(
    weights: list[Tensor], votes: list[Tensor], before: Tensor | float, reading: Reading
) -> tuple[Tensor, Tensor]:
    """But not about the smoothed one, which is the centre of the E-step."""
    mean = sum(w * v for w, v in zip(weights, votes, strict=True)) / sum(weights)
    squares = sum(w * (v - mean) ** 2 for w, v in zip(weights, votes, strict=True))
    smoothed = reading.new_share * mean + (1 - reading.new_share) * before
    return smoothed, squares / sum(weights) + reading.floor


MISTAKES: list[tuple[str, str, Callable]] = [
    ("text", "competitors", only_at_the_same_place),
    ("text", "competitors", only_of_the_same_type),
    ("text", "e_step", among_children),
    ("text", "first_share", shared_among_types),
    ("text", "first_share", shared_among_all_parents_of_the_layer),
    ("text", "cost", cost_of_log_variance),
    ("text", "cost", cost_with_beta_once),
    ("text", "cost", cost_without_mass),
    ("text", "density", densities_summed),
    ("text", "density", density_over_variance),
    ("text", "density", density_of_sigma),
    ("text", "weight", no_activation_of_the_child),
    ("text", "temperature", temperature_from_nothing),
    ("text", "temperature", temperature_at_once),
    ("code", "released_logit", entropy_with_log_of_log),
    ("code", "fit", variance_about_the_new_mean),
    ("text-mean", "data", lambda mass, layer, reading: mass),
]


@pytest.mark.parametrize(
    ("reading", "part", "mistake"),
    MISTAKES,
    ids=[f"{part}: {mistake.__name__}" for _, part, mistake in MISTAKES],
)
def test_a_mistake_shows_and_is_not_ours(
    reading: str, part: str, mistake: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = right(reading)
    monkeypatch.setattr(em_procedure_1, part, mistake)
    wrong = printed(OVERLAPS, READINGS[reading], inputs_of(OVERLAPS))[-1]
    assert largest_difference(wrong, truth) > 1e-3
    got = ours(OVERLAPS, READINGS[reading], inputs_of(OVERLAPS))
    assert largest_difference(got, truth) < 1e-10


def test_a_constant_in_the_density_shortens_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # log(σ² ln 2π) for log(2πσ²) is a constant factor of all densities: seen by no one here, since
    # R divides by their sum. It is where ln 2π enters a cost that it must be right, see above.
    def with_log(vote: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        factor = math.sqrt(2 * math.pi / math.log(2 * math.pi))
        return (factor * normal_density(vote, mean, variance)).prod()

    truth = right("text")
    monkeypatch.setattr(em_procedure_1, "density", with_log)
    wrong = printed(OVERLAPS, TEXT, inputs_of(OVERLAPS))[-1]
    assert largest_difference(wrong, truth) < 1e-10


# One child per parent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", [TEXT, CODE], ids=["text", "code"])
def test_one_child_per_parent_needs_the_floor(how, dtype: torch.dtype) -> None:
    case = Case(side=2, kernel=1, stride=1, children=1, parents=2)
    floor = 5e-4 if how is CODE else 1e-6
    inputs = inputs_of(case).cast(dtype)
    poses, activations = ours(case, replace(how, variance_floor=floor), inputs)
    (poses.sum() + activations.sum()).backward()
    for values in (poses, activations, *(leaf.grad for leaf in inputs)):
        assert values is not None
        assert values.isfinite().all()
    assert len(activations.unique()) > 1
    # As printed there is no answer: σ is 0, its logarithm infinite, and the density 0/0.
    as_printed = replace(TEXT, variance_floor=0.0)
    assert not printed(case, as_printed, inputs_of(case))[-1][0].isfinite().all()
    assert not ours(case, as_printed, inputs_of(case).cast(dtype))[0].isfinite().all()


# The amount of data


@pytest.mark.parametrize("how", [TEXT, CODE], ids=["text", "code"])
def test_mean_assignment_does_not_depend_on_the_number_of_children(how) -> None:
    case = OVERLAPS
    inputs = inputs_of(case)
    doubled = inputs._replace(
        poses=inputs.poses.repeat(1, 1, 2, 1, 1),
        activations=inputs.activations.repeat(1, 1, 2),
        transforms=inputs.transforms.repeat(1, 2, 1, 1, 1),
    )
    twice = replace(case, children=2 * case.children)
    mean = replace(how, assignment="mean")
    assert largest_difference(ours(twice, mean, doubled), ours(case, mean, inputs)) < 1e-10
    assert largest_difference(ours(twice, how, doubled), ours(case, how, inputs)) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_mean_assignment_starts_from_the_mean_activation_of_the_children(name: str) -> None:
    # Every child that is seen gives 1 in all, so that the average parent gets the average
    # activation, however many children there are for it. With σ² 1 and β_u 1 everywhere the cost
    # is 16 times what a parent gets, and with λ 1 its activation shows it.
    case = CASES[name]
    inputs = inputs_of(case)._replace(beta_u=torch.ones(case.parents, dtype=torch.float64))
    inputs = inputs._replace(beta_a=torch.zeros_like(inputs.beta_u))
    how = replace(
        TEXT, iterations=1, assignment="mean", inverse_temperature=20 / 16, variance_floor=1e9
    )
    _, activations = ours(case, how, inputs)
    shift = 0.5 * math.log(1e9)  # of ln σ; the variance of the votes is nothing beside the floor
    got = -activations.logit() / (1 + shift)
    side = (case.side - case.kernel) // case.stride * case.stride + case.kernel
    seen = inputs.activations.unflatten(1, (case.side, case.side))[:, :side, :side]
    torch.testing.assert_close(got.mean((1, 2)), seen.mean((1, 2, 3)), rtol=1e-6, atol=0)


# Betas


def test_optimiser_moves_the_betas() -> None:
    case = OVERLAPS
    layer = layer_of(case, TEXT, torch.float64)
    inputs = inputs_of(case)
    layer.load_state_dict(inputs.parameters)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"transforms_KIKJC", "beta_a_J", "beta_u_J"}
    layer(Capsules(inputs.poses, inputs.activations)).activations.square().sum().backward()
    optimiser.step()
    assert (layer.beta_a_J != inputs.beta_a).all()
    assert (layer.beta_u_J != inputs.beta_u).all()


def test_betas_made_after_the_optimiser_stay_where_they_are() -> None:
    # The mistake, for comparison: it raises no error.
    layer = layer_of(OVERLAPS, TEXT, torch.float64)
    inputs = inputs_of(OVERLAPS)
    layer.load_state_dict(inputs.parameters)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.beta_u_J = torch.nn.Parameter(inputs.beta_u.clone())
    layer(Capsules(inputs.poses, inputs.activations)).activations.square().sum().backward()
    optimiser.step()
    assert (layer.beta_u_J == inputs.beta_u).all()


def test_types_share_betas_or_have_their_own() -> None:
    case = replace(OVERLAPS, parents=4)
    own = layer_of(case, TEXT, torch.float64)
    assert own.beta_a_J.shape == own.beta_u_J.shape == (4,)
    inputs = inputs_of(case)
    same = inputs._replace(beta_a=inputs.beta_a[:1].expand(4), beta_u=inputs.beta_u[:1].expand(4))
    want = ours(case, TEXT, same)
    alone = inputs._replace(beta_a=inputs.beta_a[:1], beta_u=inputs.beta_u[:1])
    assert largest_difference(ours(case, TEXT, alone), want) == 0
