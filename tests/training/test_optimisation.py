from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from capsrepro.config import load_params, resolve_run
from capsrepro.running.assembly import build_model
from capsrepro.schema.params import SpreadMargin
from capsrepro.training.optimisation import make_optimizer, spread_margin

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
TEXT = PARAMS.protocols["matcaps-smallnorb"].recipe
CODE = PARAMS.protocols["matcaps-smallnorb-code"].recipe
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("step", "margin"),
    # paper_spec B1: 0.214 at 0, 0.294 at 100k, 0.595 at 200k, 0.896 at 300k, 0.988 at 500k.
    [(0, 0.214), (100_000, 0.294), (200_000, 0.595), (300_000, 0.896), (500_000, 0.988)],
)
def test_sigmoid_margin_is_the_one_that_the_authors_named(step, margin):
    assert spread_margin(CODE, step) == pytest.approx(margin, abs=5e-4)
    printed = 0.2 + 0.79 / (1 + math.exp(-min(10, step / 50_000 - 4)))
    assert spread_margin(CODE, step) == pytest.approx(printed, rel=1e-12)


def test_sigmoid_margin_stops_growing_where_the_authors_clip_it():
    clipped = 0.2 + 0.79 / (1 + math.exp(-10))
    assert spread_margin(CODE, 700_000) == pytest.approx(clipped, rel=1e-12)
    assert spread_margin(CODE, 10**8) == spread_margin(CODE, 700_000)


def test_linear_margin_goes_from_first_to_last_and_stays():
    assert TEXT.margin == SpreadMargin(shape="linear", first=0.2, last=0.9, steps=400_000)
    assert spread_margin(TEXT, 0) == 0.2
    assert spread_margin(TEXT, 100_000) == pytest.approx(0.375)
    assert spread_margin(TEXT, 400_000) == spread_margin(TEXT, 500_000) == pytest.approx(0.9)


def test_recipes_of_dynamic_routing_have_no_margin():
    assert spread_margin(PARAMS.protocols["mnist"].recipe, 0) is None


@pytest.mark.parametrize("shape", ["linear", "sigmoid"])
def test_short_margin_passes_through_the_same_values(shape):
    full = TEXT if shape == "linear" else CODE
    assert full.margin is not None
    shorter = full.margin.model_copy(update={"steps": full.margin.steps / 125})
    short = full.model_copy(update={"margin": shorter})
    for step in range(0, 500_000, 12_500):
        there, here = spread_margin(full, step), spread_margin(short, step // 125)
        assert here == pytest.approx(there, rel=1e-12)


def test_kernels_and_transforms_decay_and_nothing_else():
    model = build_model(resolve_run(PARAMS, "matcaps-mnist-short/matcaps-small-em3/seed-0"), CPU)
    optimizer = make_optimizer(model, TEXT)
    decaying, others = optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (2e-7, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in others["params"]} == {
        "conv1.bias",
        *(
            f"{layer}.beta_{kind}_J"
            for layer in ("conv_caps.0", "conv_caps.1", "class_caps")
            for kind in "au"
        ),
    }
    assert len(decaying["params"]) + len(others["params"]) == len(names)


def test_decay_is_the_gradient_of_half_the_sum_of_squares():
    weight = torch.tensor([[3.0]], dtype=torch.float64)
    rates = []
    for decay in (0.0, 0.5):
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        model.weight.data.copy_(weight)
        recipe = TEXT.model_copy(update={"weight_decay": decay, "adam_epsilon": 1.0})
        optimizer = make_optimizer(model, recipe)
        (2 * model.weight).sum().backward()
        optimizer.step()
        # With a large epsilon Adam's step is lr · g / (|g| + 1), from which g follows.
        moved = float((weight - model.weight).detach()) / recipe.learning_rate
        rates.append(moved / (1 - moved))
    assert rates == pytest.approx([2.0, 2.0 + 0.5 * 3.0], rel=1e-9)


def test_without_decay_one_group_holds_every_parameter():
    model = build_model(resolve_run(PARAMS, "digits/capsnet-r3-recon/seed-0"), CPU)
    (group,) = make_optimizer(model, PARAMS.protocols["digits"].recipe).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["weight_decay"] == 0


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_torchs_adam_bit_for_bit(decay):
    """Also across a checkpoint."""
    recipe = TEXT.model_copy(update={"weight_decay": decay})
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    other = nn.Linear(5, 3)
    other.load_state_dict(model.state_dict())
    groups = [
        {"params": [other.weight], "weight_decay": decay},
        {"params": [other.bias], "weight_decay": 0.0},
    ]
    settings = {
        "lr": recipe.learning_rate,
        "betas": recipe.adam_betas,
        "eps": recipe.adam_epsilon,
    }
    ours, theirs = make_optimizer(model, recipe), torch.optim.Adam(groups, **settings)
    for step in range(6):
        images = torch.randn(4, 5)
        for network, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad(set_to_none=True)
            network(images).square().sum().backward()
            optimizer.step()
        if step == 2:
            ours.load_state_dict(ours.state_dict())
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
    assert not any(p.requires_grad for s in ours.state.values() for p in s.values())


@pytest.mark.slow
def test_no_step_imports_the_compiler():
    program = """
import sys, torch
from pathlib import Path
from capsrepro.config import load_params
from capsrepro.training.optimisation import make_optimizer
from capsrepro.training.state import make_deterministic
make_deterministic()
assert torch.are_deterministic_algorithms_enabled()
assert not torch.is_deterministic_algorithms_warn_only_enabled()
model = torch.nn.Linear(2, 2)
optimizer = make_optimizer(model, load_params(Path("params.yaml")).protocols["mnist"].recipe)
for _ in range(2):
    optimizer.zero_grad(set_to_none=True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
