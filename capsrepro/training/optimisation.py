"""The optimiser, and what changes with its step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from capsrepro.schema.params import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Continuous exponential decay with a floor (authors' code of DR17, HParams)."""
    decayed = recipe.learning_rate * recipe.decay_rate ** (step / recipe.decay_steps)
    return max(float(decayed), recipe.learning_rate_floor)


def spread_margin(recipe: Recipe, step: int) -> float | None:
    """Margin m of the spread loss (EM18 Eq. 3), see `SpreadMargin`; None without a schedule."""
    rule = recipe.margin
    if rule is None:
        return None
    if rule.shape == "linear":
        risen = min(1.0, step / rule.steps)
    else:
        risen = 1 / (1 + math.exp(-min(10.0, 4 * (step / rule.steps - 1))))
    return rule.first + (rule.last - rule.first) * risen


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam over all parameters of the model; kernels and transforms alone decay."""
    decaying: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        decaying[recipe.weight_decay > 0 and parameter.ndim > 1].append(parameter)
    return torch.optim.Adam(
        [
            {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
            for decays, parameters in decaying.items()
            if parameters
        ],
        lr=recipe.learning_rate,
        betas=recipe.adam_betas,
        eps=recipe.adam_epsilon,
        fused=True,  # one pass over the parameters and their moments instead of eight
    )
