from dataclasses import replace
from functools import cache

import em_procedure_1
import pytest
import torch
from em_cases import (
    CASES,
    CODE,
    READINGS,
    TEXT,
    WAYS,
    Case,
    Inputs,
    furthest,
    inputs_of,
    layer_of,
    ours,
    outcome,
    printed,
    printed_steps,
)
from torch import Tensor

from capsrepro.models import em_routing as em_routing_module
from capsrepro.models import votes as votes_module
from capsrepro.models.capsule_layers import Capsules
from capsrepro.models.cpu import votes_cpu
from capsrepro.models.em_routing import EMRouting, em_routing
from capsrepro.models.receptive_fields import ReceptiveFields
from capsrepro.models.votes import FactoredVotes, Moments, WrittenVotes

EVERY_WAY = pytest.mark.parametrize("way", WAYS)
EVERY_READING = [
    *((reading, case) for reading in ("text", "code") for case in CASES),
    ("text-mean", "last row unseen"),
    ("code-mean", "overlaps"),
    ("mixing", "overlaps"),
    ("mixing", "classes"),
]


@pytest.fixture
def no_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper divides by Σ R as it is."""
    for module in (votes_module, votes_cpu, em_routing_module):
        monkeypatch.setattr(module, "MASS_EPSILON", 0.0)


@cache
def printed_outcomes(reading: str, name: str, spread: float) -> list[dict[str, Tensor]]:
    """What the loops give in float64 after 1, 2 and 3 iterations, gradients included."""
    inputs = inputs_of(CASES[name], spread).cast(torch.float64)
    steps = printed(CASES[name], READINGS[reading], inputs)
    return [outcome(parents, inputs) for parents in steps]


def our_outcome(reading: str, name: str, inputs: Inputs, iterations: int, way: str):
    how = replace(READINGS[reading], iterations=iterations)
    return outcome(ours(CASES[name], how, inputs, way=way), inputs)


@EVERY_WAY
@pytest.mark.parametrize(("reading", "name"), EVERY_READING)
def test_float64_is_procedure_1_gradients_included(
    reading: str, name: str, way: str, no_epsilon: None
) -> None:
    for iterations, want in enumerate(printed_outcomes(reading, name, 0.5), 1):
        inputs = inputs_of(CASES[name]).cast(torch.float64)
        got = our_outcome(reading, name, inputs, iterations, way)
        assert max(furthest(got, want).values()) < 1e-10, (iterations, furthest(got, want))


@EVERY_WAY
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reading", ["text", "code"])
def test_float32_is_procedure_1_gradients_included(reading: str, name: str, way: str) -> None:
    for iterations, want in enumerate(printed_outcomes(reading, name, 0.2), 1):
        inputs = inputs_of(CASES[name], 0.2).cast(torch.float32)
        got = our_outcome(reading, name, inputs, iterations, way)
        assert max(furthest(got, want).values()) < 1e-5, (iterations, furthest(got, want))


def our_shares(
    case: Case, how: EMRouting, inputs: Inputs
) -> list[dict[em_procedure_1.Pair, float]]:
    """R_ij of the first image, in every iteration, by names of capsules."""
    layer = layer_of(case, how, torch.float64)
    layer.load_state_dict(inputs.parameters)
    parents_side = (case.side - case.kernel) // case.stride + 1
    found = []
    for parents in layer.route(Capsules(inputs.poses, inputs.activations)):
        shares = {}
        for place, windows_K in enumerate(layer.fields.windows.tolist()):
            row, column = divmod(place, parents_side)
            for j in range(case.parents):
                of_N = iter(parents.assignments[place, j].tolist())
                for child in windows_K:
                    for i in range(case.children):
                        pair = (*divmod(child, case.side), i), (row, column, j)
                        shares[pair] = next(of_N)
        found.append(shares)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reading", ["text", "code"])
def test_a_child_shares_itself_out_among_all_parents_that_see_it(
    reading: str, name: str, no_epsilon: None
) -> None:
    case, inputs = CASES[name], inputs_of(CASES[name])
    steps = printed_steps(case, READINGS[reading], inputs)[0]
    for got, step in zip(our_shares(case, READINGS[reading], inputs), steps, strict=True):
        assert got == pytest.approx({k: float(v) for k, v in step.shares.items()}, abs=1e-12)
        for child in {child for child, _ in got}:
            mine = [share for (i, _), share in got.items() if i == child]
            assert sum(mine) == pytest.approx(1)
    assert len({round(share, 6) for share in got.values()}) > 10


@pytest.mark.parametrize("reading", READINGS)
def test_children_that_no_parent_sees_are_nowhere(reading: str) -> None:
    case = CASES["last row unseen"]
    inputs = inputs_of(case).cast(torch.float64)
    before = outcome(ours(case, READINGS[reading], inputs), inputs)
    unseen = torch.tensor([row == 5 or column == 5 for row in range(6) for column in range(6)])
    assert before["by poses"][:, unseen].abs().max() == 0
    assert before["by activations"][:, unseen].abs().max() == 0
    with torch.no_grad():
        inputs.poses[:, unseen] = 1e6
        inputs.activations[:, unseen] = 1
    after = outcome(ours(case, READINGS[reading], inputs), inputs)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize(("side", "kernel", "stride"), [(5, 3, 2), (6, 3, 2), (7, 2, 3), (4, 4, 1)])
def test_sums_over_parents_are_those_of_a_search(side: int, kernel: int, stride: int) -> None:
    fields = ReceptiveFields(side, kernel, stride)
    L, K = fields.windows.shape
    logs_BLKF = torch.randn(2, L, K, 3, dtype=torch.float64)
    windows = fields.windows.tolist()
    sums_BLKF = torch.zeros_like(logs_BLKF)
    for place, child in [(place, x) for place in range(L) for x in range(K)]:
        for other, x in [(other, x) for other in range(L) for x in range(K)]:
            if windows[other][x] == windows[place][child]:
                sums_BLKF[:, place, child] += logs_BLKF[:, other, x].exp()
    torch.testing.assert_close(fields.over_parents(logs_BLKF).exp(), sums_BLKF)
    counts = [sum(row.count(x) for row in windows) for x in range(side**2)]
    assert fields.seen.tolist() == counts


def test_a_kernel_larger_than_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="5x5 kernel does not fit into 4x4"):
        ReceptiveFields(4, 5, 1)


# Written and factored votes


@pytest.mark.parametrize("slab", [1, 700, 2**19], ids=["place by place", "uneven", "whole"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reading", ["text", "code"])
def test_slabs_of_factored_votes_are_the_written_ones(
    reading: str, name: str, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes_module, "_SLAB", slab)
    inputs = inputs_of(CASES[name], 0.2).cast(torch.float32)
    ways = "factored", "written"
    factored, written = (our_outcome(reading, name, inputs, 3, way) for way in ways)
    assert max(furthest(factored, written).values()) < 1e-5, furthest(factored, written)


def small_sums() -> tuple[list[Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Patches_NTRK, transforms_NKJC, offsets_NRC; shares_TJN, factors_TN; centres_, precisions_."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    N, T, R, K, J, C = 3, 4, 2, 3, 2, 2
    factors = [normal(N, T, R, K), normal(N, K, J, C), normal(N, R, C)]
    weights = normal(T, J, N).sigmoid(), normal(T, N).sigmoid()
    return factors, weights, (normal(T, R, J, C), normal(T, R, J, C))


@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize("slab", [1, 50, 2**19])
def test_gradients_of_both_sums_are_those_of_finite_differences(
    slab: int, with_offsets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes_module, "_SLAB", slab)
    # As large as a mass, so that the terms that are there because of it count.
    monkeypatch.setattr(votes_module, "MASS_EPSILON", 0.5)
    (patches, transforms, offsets), weights, parents = small_sums()
    places = offsets if with_offsets else None

    def moments(s: Tensor, f: Tensor, p: Tensor, t: Tensor) -> Moments:
        return FactoredVotes(p, t, places).moments(s, f)

    def distances(c: Tensor, s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return FactoredVotes(p, t, places).distances(c, s)

    for values in (patches, transforms, *weights, *parents):
        values.requires_grad_()
    assert torch.autograd.gradcheck(moments, [*weights, patches, transforms])
    assert torch.autograd.gradcheck(distances, [*parents, patches, transforms])


def test_both_sums_are_those_of_written_votes_whatever_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(votes_module, "MASS_EPSILON", 0.5)
    factors, weights, parents = small_sums()
    weights[0][1, 0] = 0
    written, factored = WrittenVotes(*factors), FactoredVotes(*factors)
    for got, want in zip(factored.moments(*weights), written.moments(*weights), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(factored.distances(*parents), written.distances(*parents))


@pytest.mark.parametrize("reading", ["text", "code"])
def test_gradients_of_a_layer_are_those_of_finite_differences(reading: str) -> None:
    case = Case(side=3, kernel=2, stride=1, children=1, parents=2)
    how = replace(READINGS[reading], variance_floor=0.5)

    def routed(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return ours(case, how, Inputs(*inputs))

    assert torch.autograd.gradcheck(routed, list(inputs_of(case).cast(torch.float64)))


# What must not matter


@EVERY_WAY
@pytest.mark.parametrize("how", [TEXT, CODE], ids=["text", "code"])
def test_order_of_the_types_does_not_matter(how: EMRouting, way: str) -> None:
    case = replace(CASES["overlaps"], children=4, parents=3)
    inputs = inputs_of(case)
    i, j = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    moved = Inputs(
        inputs.poses[:, :, i],
        inputs.activations[:, :, i],
        inputs.transforms[:, i][:, :, :, j],
        inputs.beta_a[j],
        inputs.beta_u[j],
    )
    poses, activations = ours(case, how, inputs, way=way)
    moved_poses, moved_activations = ours(case, how, moved, way=way)
    torch.testing.assert_close(moved_poses, poses[:, :, j])
    torch.testing.assert_close(moved_activations, activations[:, :, j])
    assert not torch.allclose(moved_activations, activations)


@pytest.mark.parametrize("how", [TEXT, CODE], ids=["text", "code"])
def test_a_mirrored_layer_gives_mirrored_parents(how: EMRouting) -> None:
    case = CASES["overlaps"]
    inputs = inputs_of(case)

    def mirrored(values: Tensor, dim: int, side: int) -> Tensor:
        return (
            values.unflatten(dim, (side, side))
            .flip(dim)
            .transpose(dim, dim + 1)
            .flatten(dim, dim + 1)
        )

    turned = inputs._replace(
        poses=mirrored(inputs.poses, 1, 4),
        activations=mirrored(inputs.activations, 1, 4),
        transforms=mirrored(inputs.transforms, 0, 3),
    )
    for got, want in zip(ours(case, how, turned), ours(case, how, inputs), strict=True):
        torch.testing.assert_close(got, mirrored(want, 1, 2))
        assert not torch.allclose(got, want)


@EVERY_WAY
@pytest.mark.parametrize("reading", READINGS)
def test_images_do_not_share_routing(reading: str, way: str) -> None:
    case = replace(CASES["borders"], images=5)
    inputs = inputs_of(case)
    together = ours(case, READINGS[reading], inputs, way=way)
    for image in range(5):
        one = slice(image, image + 1)
        alone = inputs._replace(poses=inputs.poses[one], activations=inputs.activations[one])
        parts = ours(case, READINGS[reading], alone, way=way)
        for got, want in zip(parts, together, strict=True):
            torch.testing.assert_close(got, want[one])
    foreign = inputs.poses.clone()
    foreign[1:] = 100.0
    others = ours(case, READINGS[reading], inputs._replace(poses=foreign), way=way)
    for got, want in zip(others, together, strict=True):
        torch.testing.assert_close(got[0], want[0])


# By hand


def by_hand(votes_JN: list[list[float]], how: EMRouting, beta_a: float, beta_u: float):
    """Routing of votes that are single numbers, of active children, at one place."""
    votes = torch.tensor(votes_JN, dtype=torch.float64)
    J, N = votes.shape
    betas = (torch.full((J,), beta, dtype=torch.float64) for beta in (beta_a, beta_u))
    fields = ReceptiveFields(1, 1, 1)
    ones = torch.ones(1, N, dtype=torch.float64)
    # Poses of 1, so that the transforms are the votes.
    written = WrittenVotes(ones.view(N, 1, 1, 1), votes.T.reshape(N, 1, J, 1))
    return em_routing(written, ones, fields, *betas, how)


def test_two_parents_by_hand(no_epsilon: None) -> None:
    # Votes 0 and 2 for parent A, 0 and 4 for B: means 1 and 2, σ 1 and 2, ΣR 1 and 1. With β 0 and
    # λ 1, a = logistic(−ln σ) = 1/2 and 1/3. Both children are one σ away from both means, so that
    # a·p is as 1/2 : (1/3)/2 and R = 3/4, 1/4: nothing moves, ΣR = 3/2 and 1/2, λ = 1.95, and
    # a_B = logistic(−1.95 · ½ ln 2).
    how = replace(TEXT, iterations=2, inverse_temperature=20.0, variance_floor=0.0)
    first, second = by_hand([[0.0, 2.0], [0.0, 4.0]], how, 0.0, 0.0)
    assert first.activations.flatten().tolist() == pytest.approx([1 / 2, 1 / 3])
    assert first.variances.flatten().tolist() == pytest.approx([1.0, 4.0])
    assert second.assignments[0].tolist() == [pytest.approx([x, x]) for x in (3 / 4, 1 / 4)]
    assert second.poses.flatten().tolist() == pytest.approx([1.0, 2.0])
    assert second.activations.flatten().tolist() == pytest.approx([1 / 2, 1 / (1 + 2**0.975)])


def test_betas_by_hand(no_epsilon: None) -> None:
    # Votes 1 and 3 for one parent: mean 2, σ 1, ΣR 2, and a = logistic(λ(β_a − 2 β_u)).
    how = replace(TEXT, iterations=1, inverse_temperature=20.0, variance_floor=0.0)
    (parents,) = by_hand([[1.0, 3.0]], how, 0.7, 0.2)
    assert parents.activations.item() == pytest.approx(torch.tensor(0.3).sigmoid().item())


def test_released_program_by_hand(no_epsilon: None) -> None:
    # One vote of 1: means 0.9, then 0.9 + 0.09; σ² is about that mean, with 5e-4 added.
    how = replace(CODE, iterations=2, inverse_temperature=0.01, variance_floor=5e-4)
    first, second = by_hand([[1.0]], how, 0.01, 0.5)
    assert [x.poses.item() for x in (first, second)] == pytest.approx([0.9, 0.99])
    assert [x.variances.item() for x in (first, second)] == pytest.approx([0.0105, 0.0006])
    for parents, temperature in ((first, 5e-4), (second, 9.75e-4)):
        entropy = 0.5 * 2.8378770664093453  # β_u (ln 2π + 1)
        logit = -parents.variances.log().sum() - entropy - 50
        want = (temperature * logit).sigmoid().item()
        assert parents.activations.item() == pytest.approx(want)
