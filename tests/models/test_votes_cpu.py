"""Compiled votes are the written ones, gradients included, whatever shape and threads."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from em_cases import furthest
from torch import Tensor

pytest.importorskip("llvmlite", reason="the fast votes are compiled by llvmlite")

from capsrepro.models import votes as votes_module
from capsrepro.models.cpu import votes_cpu
from capsrepro.models.cpu.threads import can_compile
from capsrepro.models.cpu.votes_cpu import CompiledVotes
from capsrepro.models.votes import WrittenVotes

# N, T, R, K, J, C: matrices, vectors, whole vectors of children and others, one of each.
SIZES = [
    (17, 9, 4, 4, 3, 4),
    (48, 20, 4, 4, 5, 4),
    (33, 11, 1, 16, 2, 16),
    (3, 4, 2, 3, 2, 2),
    (5, 3, 3, 2, 1, 3),
    (2, 1, 4, 4, 1, 4),
]
OFFSETS = pytest.mark.parametrize("with_offsets", [False, True], ids=["plain", "offsets"])


def inputs_of(size: tuple[int, ...], with_offsets: bool) -> dict[str, Tensor | None]:
    """Float64 numbers that float32 holds exactly."""
    N, T, R, K, J, C = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    return {
        "patches": normal(N, T, R, K),
        "transforms": normal(N, K, J, C),
        "offsets": normal(N, R, C) if with_offsets else None,
        "shares": normal(T, J, N).sigmoid(),
        "factors": normal(T, N).sigmoid(),
        "centres": normal(T, R, J, C),
        "precisions": normal(T, R, J, C).exp(),
    }


def outcome(kind, inputs: dict[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor]:
    """Both sums, and the gradients of an arbitrary number made of all."""
    given = {name: None if x is None else x.to(dtype) for name, x in inputs.items()}
    leaves = {name: x.requires_grad_() for name, x in given.items() if name != "offsets"}
    votes = kind(given["patches"], given["transforms"], given["offsets"])
    moments = votes.moments(given["shares"], given["factors"])
    distances = votes.distances(given["centres"], given["precisions"])
    results = moments._asdict() | {"distances": distances}
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=dtype)
    for values in results.values():
        total = total + (torch.randn(values.shape, generator=generator).to(dtype) * values).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return results | {f"by {x}": y for x, y in zip(leaves, gradients, strict=True)}


@OFFSETS
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("epsilon", [1e-7, 0.5])
def test_sums_and_gradients_are_those_of_written_votes(
    size: tuple[int, ...],
    with_offsets: bool,
    dtype: torch.dtype,
    most: float,
    epsilon: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As large as a mass, so that the terms that are there because of it count.
    for module in (votes_module, votes_cpu):
        monkeypatch.setattr(module, "MASS_EPSILON", epsilon)
    inputs = inputs_of(size, with_offsets)
    want = outcome(WrittenVotes, inputs, torch.float64)
    got = outcome(CompiledVotes, inputs, dtype)
    assert max(furthest(got, want).values()) < most, furthest(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_variance_is_about_the_mean_however_far_that_is(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes_cpu, "MASS_EPSILON", 0.0)
    inputs = inputs_of((48, 3, 4, 4, 2, 4), False)
    near = outcome(CompiledVotes, inputs, torch.float64)["variance"]
    inputs["offsets"] = torch.full((48, 4, 4), 4096.0)
    far = outcome(CompiledVotes, inputs, dtype)["variance"]
    # The votes are rounded to 4096 eps; Σ V² − (Σ V)² would have lost 4096² eps.
    torch.testing.assert_close(far.double(), near, rtol=2e4 * torch.finfo(dtype).eps, atol=0)


def test_parents_and_children_of_no_mass() -> None:
    inputs = inputs_of(SIZES[0], True)
    inputs["shares"][1, 0] = 0
    inputs["factors"][2:5] = 0
    want, got = (outcome(x, inputs, torch.float64) for x in (WrittenVotes, CompiledVotes))
    assert (got["mass"][2:5] == 0).all()
    # Gradients by these weights are some 1e7 times the others.
    assert max(furthest(got, want).values()) < 1e-12, furthest(got, want)


@OFFSETS
def test_gradients_are_those_of_finite_differences(
    with_offsets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes_cpu, "MASS_EPSILON", 0.5)
    inputs = inputs_of((3, 4, 2, 3, 2, 2), with_offsets)
    offsets = inputs.pop("offsets")
    patches, transforms, shares, factors, centres, precisions = (
        x.requires_grad_() for x in inputs.values()
    )

    def moments(p: Tensor, t: Tensor, s: Tensor, f: Tensor):
        return CompiledVotes(p, t, offsets).moments(s, f)

    def distances(p: Tensor, t: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return CompiledVotes(p, t, offsets).distances(c, s)

    assert torch.autograd.gradcheck(moments, [patches, transforms, shares, factors])
    assert torch.autograd.gradcheck(distances, [patches, transforms, centres, precisions])


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_bits_do_not_depend_on_threads(size: tuple[int, ...]) -> None:
    inputs, before, results = inputs_of(size, True), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(outcome(CompiledVotes, inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    for one, other in pairwise(results):
        for name, values in one.items():
            assert torch.equal(values, other[name]), name


def test_inputs_need_not_be_contiguous() -> None:
    inputs = inputs_of(SIZES[1], True)
    turned = {
        name: None if x is None else x.transpose(0, 1).contiguous().transpose(0, 1)
        for name, x in inputs.items()
    }
    one, other = (outcome(CompiledVotes, x, torch.float32) for x in (inputs, turned))
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def test_gradients_may_come_with_any_strides() -> None:
    inputs = {name: x for name, x in inputs_of(SIZES[0], False).items() if name != "offsets"}
    gradients = []
    for kind in (WrittenVotes, CompiledVotes):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        votes = kind(leaves["patches"], leaves["transforms"])
        outputs = [
            *votes.moments(leaves["shares"], leaves["factors"]),
            votes.distances(leaves["centres"], leaves["precisions"]),
        ]
        # Sums hand on one number for many, and a turned one columns for rows.
        total = sum(x.sum() + (x.mT * x.mT.detach().contiguous()).sum() for x in outputs)
        found = torch.autograd.grad(total, list(leaves.values()))
        gradients.append(dict(zip(leaves, found, strict=True)))
    assert max(furthest(*gradients).values()) < 1e-13


def test_only_float32_and_float64_on_the_processor_are_compiled() -> None:
    assert can_compile(torch.zeros(1))
    assert can_compile(torch.zeros(1, dtype=torch.float64))
    assert not can_compile(torch.zeros(1, dtype=torch.bfloat16))
    assert not can_compile(torch.zeros(1, device="meta"))


def test_shares_of_another_type_or_size_are_refused() -> None:
    inputs = inputs_of(SIZES[0], False)
    votes = CompiledVotes(inputs["patches"], inputs["transforms"])
    for shares in (inputs["shares"].float(), inputs["shares"][1:], inputs["shares"][:, 1:]):
        with pytest.raises(ValueError, match="a compiled loop needs contiguous"):
            votes.moments(shares, inputs["factors"])


@pytest.mark.slow
def test_without_llvmlite_votes_are_factored() -> None:
    program = """
import importlib.abc, importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "llvmlite" else find_spec(name)
import torch
from em_cases import CASES, TEXT, inputs_of, layer_of
from capsrepro.models.capsule_layers import Capsules
case = CASES["overlaps"]
inputs, layer = inputs_of(case), layer_of(case, TEXT, torch.float64)
layer.load_state_dict(inputs.parameters)
children = Capsules(inputs.poses, inputs.activations)
print(type(layer.votes(children)).__name__, layer(children).activations.isfinite().all().item())
print("llvmlite" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.split() == ["FactoredVotes", "True", "False"]
