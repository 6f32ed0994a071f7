"""What changes with the optimiser step alone."""

from __future__ import annotations

import math

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
