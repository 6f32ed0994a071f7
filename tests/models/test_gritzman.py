"""The networks that stand beside Gritzman 2019: their starts, and why their λ is not 0.01."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from capsrepro.config import load_params
from capsrepro.models import MODELS

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
PROTOCOL = PARAMS.protocols["matcaps-smallnorb-monocular"]


def starting_activations(name: str, **routing: float) -> list[Tensor]:
    """Of the three layers that are routed, on standardised noise."""
    spec = PARAMS.models[PROTOCOL.models][name]
    fields = spec.model_dump(exclude={"family", "stands_for", "reading"})
    fields["routing"] |= routing
    torch.manual_seed(0)
    model = MODELS[spec.family](image_shape=(1, 32, 32), classes=5, **fields)
    found: list[Tensor] = []
    for layer in model.routed_layers:
        layer.register_forward_hook(lambda _, __, parents: found.append(parents.activations))
    with torch.no_grad():
        model(torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize("name", PROTOCOL.run_models)
def test_capsules_are_neither_all_active_nor_all_silent_at_the_start(name: str) -> None:
    means = [layer.mean().item() for layer in starting_activations(name)]
    assert [mean for mean in means if not 0.3 < mean < 0.85] == []


def test_with_the_mean_of_the_data_a_small_temperature_says_nothing() -> None:
    """Costs are then so small that classes could hardly be 0.2 apart, let alone 0.99."""
    name = "matcaps-small-em3-mean"
    small = starting_activations(name, inverse_temperature=0.01)[-1].flatten(1)
    ours = starting_activations(name)[-1].flatten(1)
    assert small.std(1).mean() < 0.003
    assert ours.std(1).mean() > 0.03


def test_the_recipe_is_his_where_his_program_is_known() -> None:
    recipe = PROTOCOL.recipe
    standardise, crop, brightness, contrast = recipe.operations
    assert (standardise.op, crop.size_px, brightness.max_delta) == ("standardise", 32, 2)
    assert (contrast.lower, contrast.upper) == (0.5, 1.5)
    assert (recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (64, 0.003, 0)
    assert (recipe.decay_rate, recipe.decay_steps) == (0.96, 20_000)
    margin = recipe.margin
    assert margin is not None
    assert (margin.shape, margin.first, margin.last) == ("sigmoid", 0.2, 0.99)
    assert PROTOCOL.judged_as == PROTOCOL.dataset == "smallnorb-monocular"
