"""The optimiser, and what changes with its step alone."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of all parameters; on a GPU it is a tensor that a captured step reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class _Adam(torch.optim.Adam):
    """torch's Adam without what hides it from torch's compiler, which is imported to do so.

    Nothing here is compiled, and the import takes a second at the start of every run. Otherwise
    `step` only switches gradients off, for which it is wrapped anew.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam over all parameters of the model; kernels and transforms alone decay.

    On a GPU it is one kernel, and its learning rate and count of steps lie there too, so that a
    step can be captured.
    """
    decaying: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        decaying[recipe.weight_decay > 0 and parameter.ndim > 1].append(parameter)
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    return _Adam(
        [
            {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
            for decays, parameters in decaying.items()
            if parameters
        ],
        lr=torch.tensor(recipe.learning_rate, device=device) if on_gpu else recipe.learning_rate,
        betas=recipe.adam_betas,
        eps=recipe.adam_epsilon,
        fused=on_gpu or None,
        capturable=on_gpu,
    )
